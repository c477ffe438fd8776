// Mouse, pen and touch on the canvas: drag to draw a box, to move it, or by a handle to resize it.
import { $ } from "../dom.js";
import { boxOf, elementsOf } from "./document.js";
import { addElement, setBox } from "./edits.js";
import { MOST, between, isLarge, moved, resized, snap } from "./geometry.js";
import { current, select, selection } from "./store.js";

let canvas = null;
let drag = null; // (point, exact) => void
let count = 0; // each drag is one step of undo

export function startPointer(target) {
  canvas = target;
  canvas.addEventListener("pointerdown", begin);
  canvas.addEventListener("pointermove", (event) => drag?.(pointOf(event), event.altKey));
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
}

function begin(event) {
  if (event.button !== 0 || drag) return;
  count += 1;
  const box = event.target.closest(".box");
  const edges = event.target.closest(".handle")?.dataset.edges;
  const at = pointOf(event);
  drag = box ? dragBox(Number(box.dataset.index), at, edges) : draw(at, event.pointerType);
  canvas.setPointerCapture(event.pointerId);
  if (!box) event.preventDefault(); // a drag selects no text
}

function end(event) {
  if (drag && event.type === "pointerup") drag(pointOf(event), event.altKey, true);
  drag = null;
}

/** `[y, x]` in thousandths of the canvas. */
function pointOf(event) {
  const room = canvas.getBoundingClientRect();
  return [((event.clientY - room.top) / room.height) * MOST, ((event.clientX - room.left) / room.width) * MOST];
}

function draw(start, pointerType) {
  let index = -1;
  select(-1);
  return (at, exact, isEnd) => {
    const box = between(start.map((value) => snap(value, exact)), at.map((value) => snap(value, exact)));
    if (index >= 0) setBox(index, isLarge(box) ? box : boxOf(elementsOf(current())[index]), keyOf());
    else if (isLarge(box)) {
      addElement("obj", box);
      index = selection();
    }
    if (isEnd && index >= 0 && pointerType === "mouse") $("element-desc").focus();
  };
}

function dragBox(index, start, edges) {
  const before = boxOf(elementsOf(current())[index]);
  select(index);
  return (at, exact) => {
    const [down, along] = [at[0] - start[0], at[1] - start[1]];
    const next = edges ? resizedTo(before, edges, down, along, exact) : movedTo(before, down, along, exact);
    if (String(next) !== String(boxOf(elementsOf(current())[index]))) setBox(index, next, keyOf());
  };
}

function movedTo(box, down, along, exact) {
  const [top, left] = [snap(box[0] + down, exact), snap(box[1] + along, exact)];
  return moved(box, top - box[0], left - box[1]);
}

function resizedTo(box, edges, down, along, exact) {
  const edge = (forward, backward, names, by) => {
    const from = edges.includes(names[0]) ? box[forward] : box[backward];
    return snap(from + by, exact) - from;
  };
  return resized(box, edges, edge(0, 2, "ns", down), edge(1, 3, "we", along));
}

const keyOf = () => `drag ${count}`;
