// Captions as files, templates, and undo.
import { $, download } from "../dom.js";
import { say } from "../result/stage.js";
import { format, isObject } from "./document.js";
import { canUndo, current, replace, select, subscribe, undo } from "./store.js";
import { TEMPLATES } from "./templates.js";

export function startFiles() {
  for (const name of Object.keys(TEMPLATES)) $("template").add(new Option(name, name));
  $("template").addEventListener("change", useTemplate);
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", importFile);
  $("export").addEventListener("click", exportFile);
  $("undo").addEventListener("click", undo);
  subscribe(() => { $("undo").disabled = !canUndo(); });
}

/** Show another caption in the builder. */
export function openCaption(caption) {
  replace(caption);
  select(-1);
}

function useTemplate() {
  openCaption(structuredClone(TEMPLATES[$("template").value]));
  $("template").value = "";
}

async function importFile() {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  try {
    const caption = JSON.parse(await file.text());
    if (!isObject(caption)) throw new Error("it is not an object");
    openCaption(caption);
    say(`Imported ${file.name}.`);
  } catch (error) {
    say(`${file.name} is not a caption: ${error.message}.`, true);
  }
}

function exportFile() {
  const url = URL.createObjectURL(new Blob([format(current())], { type: "application/json" }));
  download(url, "caption.json");
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
