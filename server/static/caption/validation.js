// Asks the server what is wrong with the caption, a moment after each change.
import { debounce } from "../dom.js";
import { call } from "../server.js";
import { current, report, subscribe } from "./store.js";

const PAUSE = 250; // milliseconds
let asked = null; // the caption of the last question
let running = new AbortController();

export function startValidation() {
  const later = debounce(PAUSE, validate);
  subscribe(() => { if (current() !== asked) later(); });
}

async function validate() {
  if (current() === asked) return;
  asked = current();
  running.abort();
  running = new AbortController();
  try {
    const answer = await call("v1/captions/validate", { json_prompt: asked }, running.signal);
    report(answer.warnings);
  } catch (error) {
    if (error.name !== "AbortError") report([{ code: error.code, path: "", message: error.message }]);
  }
}
