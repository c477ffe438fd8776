// The caption as JSON: changes of the builder appear in the text, changes of the text in the builder.
import { $, setValue } from "../dom.js";
import { format, isObject } from "./document.js";
import { current, replace, subscribe } from "./store.js";

let error = "";
let shown = null; // the caption of the text; while that is not valid JSON, the one before

/** Why the text is not a caption; empty if it is one. */
export const jsonError = () => error;

export function startJson() {
  $("json").addEventListener("input", read);
  $("json").addEventListener("blur", () => { if (!error) write(); });
  subscribe(() => { if (current() !== shown) write(); });
  write();
}

function write() {
  error = "";
  shown = current();
  setValue($("json"), format(shown));
  showError();
}

function read() {
  const { value, message } = parse($("json").value);
  error = message;
  showError();
  if (error) return;
  shown = value; // leaves the text as it is typed
  replace(value, "json");
}

function parse(text) {
  try {
    const value = JSON.parse(text);
    return { value, message: isObject(value) ? "" : "it is not an object" };
  } catch (failure) {
    return { message: failure.message };
  }
}

function showError() {
  $("json").setAttribute("aria-invalid", error !== "");
  if (error) $("json-state").textContent = `Not valid JSON: ${error}`;
  $("json-state").classList.toggle("fault", error !== "");
}
