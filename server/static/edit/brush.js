// The brush: mouse, pen, touch and keys on the picture.
import { $ } from "../dom.js";
import { beginStroke, canUndo, clearMask, draw, endStroke, extendStroke, placeAt, sides, undo } from "./mask.js";

const STEPS = 40; // of the keys, along the longer side
const FINE_STEPS = 400;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let painting = null; // the pointer that paints
let cursor = { x: 0, y: 0 }; // of the keys

export function startBrush() {
  const canvas = $("mask");
  canvas.addEventListener("pointerdown", begin);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => draw());
  canvas.addEventListener("keydown", onKey);
  canvas.addEventListener("focus", () => canvas.matches(":focus-visible") && show(cursor));
  canvas.addEventListener("blur", () => draw());
  $("mask-undo").addEventListener("click", () => keepFocus($("mask-undo"), undo));
  $("mask-clear").addEventListener("click", () => keepFocus($("mask-clear"), clearMask));
}

export function centreBrush() {
  cursor = { x: sides().width / 2, y: sides().height / 2 };
}

const size = () => Number($("brush").value) / 100;

const show = (at) => draw(at, size());

function begin(event) {
  if (event.button !== 0 || painting !== null) return;
  painting = event.pointerId;
  $("mask").setPointerCapture(painting);
  beginStroke(placeOf(event), size());
  show(placeOf(event));
}

function move(event) {
  if (painting !== null && event.pointerId !== painting) return;
  if (painting !== null) extendStroke(placeOf(event));
  show(placeOf(event));
}

function end(event) {
  if (event.pointerId !== painting) return;
  painting = null;
  endStroke();
}

function placeOf(event) {
  const room = $("mask").getBoundingClientRect();
  return placeAt((event.clientX - room.left) / room.width, (event.clientY - room.top) / room.height);
}

function onKey(event) {
  if (event.key in ARROWS) step(event);
  else if (event.key === " ") paint();
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else return;
  event.preventDefault();
}

/** Move the brush; with Shift it paints on its way. */
function step(event) {
  const { width, height } = sides(), by = Math.max(width, height) / (event.ctrlKey ? FINE_STEPS : STEPS);
  const [along, down] = ARROWS[event.key], from = cursor;
  const inside = (value, most) => Math.min(most, Math.max(0, value));
  cursor = { x: inside(cursor.x + along * by, width), y: inside(cursor.y + down * by, height) };
  if (event.shiftKey) {
    beginStroke(from, size());
    extendStroke(cursor);
    endStroke();
  } else {
    $("mask-news").textContent = `Brush at ${percent(cursor.x / width)} from the left, ${percent(cursor.y / height)} from the top`;
  }
  show(cursor);
}

function paint() {
  beginStroke(cursor, size());
  endStroke();
  show(cursor);
}

const percent = (share) => `${Math.round(share * 100)}%`;

/** A button that disables itself would lose the focus of its user. */
function keepFocus(button, action) {
  action();
  if (button.disabled) (canUndo() ? $("mask-undo") : $("mask")).focus();
}
