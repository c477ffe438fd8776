// What the server says about the caption, at the field or element that it is about.
import { $, element } from "../dom.js";
import { ELEMENTS } from "./document.js";
import { jsonError } from "./json.js";
import { issuesFound, selection, subscribe } from "./store.js";

/** A valid value that the model may draw badly. */
export const isMild = (issue) => issue.code === "empty";

/** The issues at a path and below it. */
export function issuesBelow(path) {
  return issuesFound().filter((issue) => issue.path === path || issue.path?.startsWith(`${path}.`));
}

export function startFaults() {
  for (const field of document.querySelectorAll("[data-path], [data-key]")) addNote(field);
  subscribe(render);
}

function addNote(field) {
  const control = field.querySelector("input, select, textarea");
  const note = element("p", { className: "fault", id: `${control?.id || field.dataset.key || field.dataset.path}-fault`, hidden: true });
  field.append(note);
  control?.setAttribute("aria-describedby", note.id);
}

function render() {
  const element = `${ELEMENTS}.${selection()}`;
  const shown = new Set();
  // The deepest field first: an issue is shown once, as near to its value as possible.
  for (const [path, field] of fields(element).toSorted(([a], [b]) => b.length - a.length)) {
    const issues = field.hidden ? [] : issuesBelow(path).filter((issue) => !shown.has(issue));
    issues.forEach((issue) => shown.add(issue));
    showAt(field, issues);
  }
  show($("element-fault"), issuesBelow(element).filter((issue) => !shown.has(issue)));
  showList();
}

/** Pairs of a path in the caption and the field that shows it. */
function fields(element) {
  const whole = [...document.querySelectorAll("[data-path]")].map((field) => [field.dataset.path, field]);
  return [...whole, ...[...document.querySelectorAll("[data-key]")].map((field) => [`${element}.${field.dataset.key}`, field])];
}

function showAt(field, issues) {
  show(field.querySelector(":scope > .fault"), issues);
  const control = field.querySelector("input, select, textarea");
  control?.setAttribute("aria-invalid", issues.some((issue) => !isMild(issue)));
}

function show(note, issues) {
  note.hidden = issues.length === 0;
  note.textContent = issues.map((issue) => issue.message).join(" ");
  note.classList.toggle("mild", issues.every(isMild));
}

function showList() {
  const issues = issuesFound();
  $("json-faults").replaceChildren(...issues.map(lineOf));
  if (!jsonError()) $("json-state").textContent = issues.some((issue) => !isMild(issue)) ? "Deviates from the schema" : "Valid";
}

function lineOf(issue) {
  const path = issue.path ? [element("code", { textContent: issue.path }), " "] : [];
  return element("li", { className: isMild(issue) ? "mild" : "" }, ...path, issue.message);
}
