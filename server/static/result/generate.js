// Runs a request: sends it, follows its events, stops it.
import { $ } from "../dom.js";
import { edit } from "../edit/source.js";
import { clearErrors, showError } from "../form/errors.js";
import { formOf, requestBody } from "../form/request.js";
import { keep, update } from "../history/gallery.js";
import { stream } from "../server.js";
import { addResult, beginJob, refresh, say, showPreview } from "./stage.js";

const EVENTS = { queued: onQueued, progress: onProgress, partial_image: onPreview, completed: onCompleted, timing: onTimings };
let running = null;

export function startGeneration() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
  $("four").addEventListener("click", () => generate({ n: 4 }));
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
  });
}

/** `more` replaces fields of the form. */
async function generate(more = {}) {
  if (running) return;
  running = new AbortController();
  clearErrors();
  try {
    const edited = await edit();
    await run({ ...requestBody(), ...edited?.fields, ...more }, edited?.files);
  } catch (error) {
    fail(error);
  }
  running = null;
  setBusy(false);
}

async function run(body, files) {
  setBusy(true);
  say("Waiting…");
  const job = { body, files, pictures: [], started: performance.now() };
  beginJob(job);
  const asked = { ...body, stream: true, partial_images: 3, progress: true };
  const [path, sent] = files ? ["v1/images/edits", formOf(asked, files)] : ["v1/images", asked];
  await stream(path, sent, running.signal, (name, data) => EVENTS[name.split(".").at(-1)]?.(job, data));
  if (job.pictures.length < body.n) throw new Error("The stream ended before the last image.");
  say(`Done in ${secondsSince(job.started).toFixed(1)} s.`);
}

function fail(error) {
  if (error.name === "AbortError") return say("Stopped.");
  showError(error.param, error.message);
  say(error.message, true);
}

function setBusy(busy) {
  $("go").disabled = $("four").disabled = busy;
  $("stop").disabled = !busy;
  $("stage").setAttribute("aria-busy", busy);
  if (busy) $("progress").value = 0;
}

function onQueued(job, data) {
  const wait = data.predicted_seconds === null ? "" : `, about ${data.predicted_seconds.toFixed(1)} s to go`;
  say(data.position ? `Position ${data.position} in the queue${wait}` : `Waiting${wait}…`);
}

function onProgress(job, data) {
  $("progress").value = (data.image_index + data.step / data.num_steps) / job.body.n;
  say(`Image ${data.image_index + 1} of ${job.body.n}: step ${data.step} of ${data.num_steps}`);
}

function onPreview(job, data) {
  showPreview(data.image_index, `data:image/${data.output_format};base64,${data.b64_json}`, data.size);
}

function onCompleted(job, data) {
  const bytes = Uint8Array.from(atob(data.b64_json), (character) => character.charCodeAt(0));
  const picture = keep({
    blob: new Blob([bytes], { type: `image/${data.output_format}` }),
    seed: data.seed, format: data.output_format, size: data.size, body: job.body, files: job.files, alt: altOf(job.body),
    revised: data.revised_prompt, seconds: secondsSince(job.started), timings: "", created: Date.now(),
  });
  job.pictures.push(picture);
  addResult(data.image_index, picture);
}

function onTimings(job, text) {
  const stages = text.split(", ").map((stage) => stage.replace(/;dur=(.*)/, (_, ms) => ` ${(ms / 1000).toFixed(2)} s`));
  for (const picture of job.pictures) {
    picture.timings = stages.join(" · ");
    update(picture);
    refresh(picture);
  }
}

function altOf({ prompt, json_prompt: caption }) {
  const words = prompt ?? caption.high_level_description;
  return typeof words === "string" && words ? words : "From a structured caption";
}

const secondsSince = (time) => (performance.now() - time) / 1000;
