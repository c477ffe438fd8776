// The canvas: boxes that are drawn, moved and resized with a pointer or with keys.
import { $, element, reconcile } from "../dom.js";
import { colourIn, inkOf } from "./colours.js";
import { boxOf, elementsOf, nameOf, textOf } from "./document.js";
import { removeElement, setBox } from "./edits.js";
import { moved, resized } from "./geometry.js";
import { startPointer } from "./pointer.js";
import { current, select, selection, subscribe } from "./store.js";

const EDGES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const STEP = 10, FINE_STEP = 1; // thousandths
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export function startCanvas() {
  subscribe(render);
  startPointer($("canvas"));
  $("canvas").addEventListener("keydown", onKey);
  $("canvas").addEventListener("focusin", (event) => event.target.matches(".box") && select(indexOf(event.target)));
  render();
}

/** Width divided by height of the image. */
export function setAspect(aspect) {
  $("canvas").style.setProperty("--aspect", aspect);
}

export const indexOf = (box) => Number(box.dataset.index);

function render() {
  const list = elementsOf(current());
  const drawn = list.flatMap((each, index) => (boxOf(each) ? [index] : []));
  reconcile($("canvas"), drawn.length, createBox, (box, place) => updateBox(box, drawn[place], list[drawn[place]]));
  const background = colourIn(textOf(current().compositional_deconstruction?.background)) ?? "#FFFFFF";
  $("canvas").style.setProperty("--backdrop", background);
}

function createBox() {
  const handles = EDGES.map((edges) => element("span", { className: "handle", attributes: { "data-edges": edges } }));
  const attributes = { role: "button", tabindex: "0" }; // a real button hides its children from pointers in some browsers
  return element("div", { className: "box", attributes }, element("span", { className: "tag" }), ...handles);
}

function updateBox(box, index, each) {
  const bbox = boxOf(each);
  const [top, left, bottom, right] = bbox;
  Object.assign(box.style, { top: percent(top), left: percent(left), height: percent(bottom - top), width: percent(right - left) });
  box.style.setProperty("--ink", inkOf(each, index));
  box.style.setProperty("--fill", `color-mix(in srgb, ${inkOf(each, index)} 22%, rgb(255 255 255 / .35))`);
  box.dataset.index = index;
  box.setAttribute("aria-pressed", index === selection());
  box.setAttribute("aria-label", `Box ${index + 1}: ${nameOf(each)}. ${place(bbox)}`);
  box.firstElementChild.textContent = `${index + 1} ${nameOf(each)}`;
}

const percent = (thousandths) => `${thousandths / 10}%`;

function place([top, left, bottom, right]) {
  return `Left ${percent(left)}, top ${percent(top)}, width ${percent(right - left)}, height ${percent(bottom - top)}`;
}

function onKey(event) {
  if (!event.target.matches(".box")) return;
  const index = indexOf(event.target);
  if (event.key === "Delete" || event.key === "Backspace") remove(index);
  else if (event.key === "Enter") $("element-desc").focus();
  else if (event.key in ARROWS) step(index, event);
  else return;
  event.preventDefault();
}

function remove(index) {
  removeElement(index);
  ($("canvas").children[Math.min(index, $("canvas").children.length - 1)] ?? $("add-object")).focus();
  announce("Removed");
}

function step(index, event) {
  const [down, along] = ARROWS[event.key].map((way) => way * (event.ctrlKey ? FINE_STEP : STEP));
  const box = boxOf(elementsOf(current())[index]);
  const next = event.shiftKey ? resized(box, "se", down, along) : moved(box, down, along);
  setBox(index, next, "keys");
  announce(place(next));
}

function announce(text) {
  $("canvas-news").textContent = text;
}
