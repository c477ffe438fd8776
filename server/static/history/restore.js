// Restores the settings of an image file that this server has made.
import { openCaption } from "../caption/files.js";
import { isObject } from "../caption/document.js";
import { $ } from "../dom.js";
import { chooseStrength, hasSource, removeSource, take, takesImages } from "../edit/source.js";
import { restoreAdapters } from "../form/adapters.js";
import { useInput } from "../form/input.js";
import { restoreSettings } from "../form/settings.js";
import { say } from "../result/stage.js";
import { readMetadata } from "./metadata.js";

let allow;
const isAllowed = new Promise((resolve) => (allow = resolve));

/** Restore files from now on, which wait until the page knows the model and its adapters. */
export const allowRestoring = () => allow();

export function startRestoring() {
  $("open-image").addEventListener("click", () => $("open-file").click());
  $("open-file").addEventListener("change", () => {
    restore($("open-file").files[0]);
    $("open-file").value = "";
  });
  document.addEventListener("dragover", (event) => mark(event, hasFile(event)));
  document.addEventListener("dragleave", (event) => mark(event, event.relatedTarget !== null && hasFile(event)));
  document.addEventListener("drop", onDrop);
}

/** A part of the page that takes files itself prevents the default. */
function mark(event, isOver) {
  const isOurs = isOver && !event.defaultPrevented;
  document.body.classList.toggle("dropping", isOurs);
  if (isOurs) event.preventDefault();
}

const hasFile = (event) => event.dataTransfer.types.includes("Files");

function onDrop(event) {
  document.body.classList.remove("dropping");
  if (event.defaultPrevented || !hasFile(event)) return;
  event.preventDefault();
  restore(event.dataTransfer.files[0]);
}

async function restore(file) {
  await isAllowed;
  const facts = readMetadata(await file.arrayBuffer());
  if (!facts) return takesImages() ? take(file) : say(`${file.name} has no settings of this server.`, true);
  restoreAdapters(facts.adapters ?? []);
  const isOfAdapter = facts.adapters?.some(({ name }) => name === facts.preset);
  restoreSource(facts.strength);
  restoreSettings({ size: `${facts.width}x${facts.height}`, preset: isOfAdapter ? null : facts.preset, seed: facts.seed });
  const prompt = facts.revised_prompt ?? facts.prompt;
  if (prompt !== undefined) restorePrompt(prompt);
  const said = prompt === undefined ? "Settings restored. The image does not contain its prompt." : "Settings and prompt restored.";
  say(facts.strength !== undefined && !hasSource() ? `${said} Choose the image that it was drawn from.` : said);
}

/** A file records how strongly an image was changed, but not that image. */
function restoreSource(strength) {
  if (strength === undefined) removeSource();
  else chooseStrength(strength);
}

function restorePrompt(text) {
  const caption = captionIn(text);
  useInput(caption ? "json_prompt" : "prompt");
  if (caption) openCaption(caption);
  else $("prompt").value = text;
}

function captionIn(text) {
  try {
    const value = JSON.parse(text);
    return isObject(value) && "compositional_deconstruction" in value ? value : null;
  } catch {
    return null;
  }
}
