// The input of a request: a text prompt or a structured caption.
import { current } from "../caption/store.js";
import { jsonError } from "../caption/json.js";
import { $ } from "../dom.js";
import { InputError, contribute } from "./request.js";

const radios = document.getElementsByName("input");

export const inputKind = () => $("page").dataset.input;

export function startInput() {
  for (const radio of radios) radio.addEventListener("change", () => useInput(radio.value));
  contribute(addInput);
}

export function useInput(kind) {
  for (const radio of radios) radio.checked = radio.value === kind;
  $("page").dataset.input = kind;
}

function addInput(body) {
  if (inputKind() === "prompt") {
    if (!$("prompt").value.trim()) throw new InputError("Describe the image.", "prompt");
    body.prompt = $("prompt").value;
    return;
  }
  if (jsonError()) throw new InputError(`The caption is not valid JSON: ${jsonError()}`, "json_prompt");
  body.json_prompt = current();
}
