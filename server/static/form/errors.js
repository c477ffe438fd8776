// Errors of a request, shown at the field that they name.
import { $, element } from "../dom.js";

const FIELDS = {
  prompt: "prompt", json_prompt: "json", size: "size", width: "size", height: "size", aspect_ratio: "size",
  preset: "preset", seed: "seed", n: "n", output_format: "format", Authorization: "key", adapters: "adapter",
  image: "source-pick", mask: "mask", strength: "strength",
  expand: "margin-left", "expand.left": "margin-left", "expand.top": "margin-top", "expand.right": "margin-right",
  "expand.bottom": "margin-bottom",
};

/** Returns whether there is a visible field for `param`. */
export function showError(param, message) {
  const field = $(FIELDS[param] ?? "");
  if (!field?.offsetParent) return false;
  const note = noteOf(field);
  note.textContent = message;
  note.hidden = false;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", note.id);
  field.focus();
  return true;
}

export function clearErrors() {
  for (const note of document.querySelectorAll(".fault.of-request")) note.hidden = true;
  for (const id of new Set(Object.values(FIELDS))) $(id).removeAttribute("aria-invalid");
}

function noteOf(field) {
  const id = `${field.id}-error`;
  if (!$(id)) field.closest(".field").append(element("p", { id, className: "fault of-request", attributes: { role: "alert" } }));
  return $(id);
}
