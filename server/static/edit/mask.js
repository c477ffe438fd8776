// The mask: strokes of a brush over the image. What they cover is painted, the rest is kept.
import { $ } from "../dom.js";
import { canvasOf, layout, resize } from "./picture.js";

const MOST = 2048; // pixels of the mask's longer side
const SAMPLE = 64; // pixels of the sides at which the covered share is counted
let picture = null;
let margins = {};
let layer = canvasOf(1, 1); // a pattern where the brush was, in pixels of the mask
let strokes = []; // each { width, points }
let past = []; // earlier strokes, for undo
let onChange = () => {};

/** `listener()` is called when the strokes have changed. */
export const whenMasked = (listener) => { onChange = listener; };

export const isMasked = () => strokes.length > 0;

/** Show a picture, without a mask. */
export function openMask(opened) {
  picture = opened;
  const scale = Math.min(1, MOST / Math.max(picture.width, picture.height));
  resize(layer, picture.width * scale, picture.height * scale);
  [strokes, past, margins] = [[], [], {}];
  changed();
}

/** Show the margins around the picture. */
export function showMargins(shown) {
  margins = shown;
  draw();
}

/** Begin a stroke at a place of the mask; `size` is the brush's width as a share of the longer side. */
export function beginStroke(at, size) {
  past.push(strokes);
  strokes = [...strokes, { width: widthOf(size), points: [] }];
  extendStroke(at);
}

export function extendStroke(at) {
  const { width, points } = strokes.at(-1);
  line(width, points.at(-1) ?? at, at);
  points.push(at);
}

export const endStroke = () => onChange();

export function undo() {
  if (past.length) replace(past.pop());
}

export function clearMask() {
  if (!isMasked()) return;
  past.push(strokes);
  replace([]);
}

export const canUndo = () => past.length > 0;

/** The covered share of the picture, 0 to 1. */
export function coveredShare() {
  const context = canvasOf(SAMPLE, SAMPLE).getContext("2d", { willReadFrequently: true });
  context.drawImage(layer, 0, 0, SAMPLE, SAMPLE);
  const { data } = context.getImageData(0, 0, SAMPLE, SAMPLE);
  return data.reduce((sum, value, index) => (index % 4 === 3 ? sum + value : sum), 0) / (255 * SAMPLE ** 2);
}

/** A PNG file, transparent where the brush was; null without a mask. */
export async function maskFile(name) {
  if (!isMasked()) return null;
  const mask = canvasOf(layer.width, layer.height), context = mask.getContext("2d");
  context.fillRect(0, 0, mask.width, mask.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(layer, 0, 0);
  const blob = await new Promise((resolve) => { mask.toBlob(resolve, "image/png"); });
  return new File([blob], name, { type: "image/png" });
}

/** The place of the mask at fractions of the canvas's sides. */
export function placeAt(across, down) {
  const { width, height, x, y, w, h } = layout(picture, margins);
  return { x: ((across * width - x) / w) * layer.width, y: ((down * height - y) / h) * layer.height };
}

export const sides = () => ({ width: layer.width, height: layer.height });

/** The picture, its margins and the mask; `cursor` is a place of the mask where a brush of `size` is shown. */
export function draw(cursor = null, size = 0) {
  const canvas = $("mask"), context = canvas.getContext("2d");
  const { width, height, x, y, w, h } = layout(picture, margins);
  resize(canvas, width, height).style.setProperty("--aspect", width / height);
  context.fillStyle = pattern(context);
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture.shown, x, y, w, h);
  context.globalAlpha = 0.75;
  context.drawImage(layer, x, y, w, h);
  context.globalAlpha = 1;
  if (cursor) ring(context, x + (cursor.x / layer.width) * w, y + (cursor.y / layer.height) * h, (widthOf(size) / layer.width) * w);
}

function changed() {
  draw();
  onChange();
}

function replace(next) {
  strokes = next;
  resize(layer, layer.width, layer.height);
  for (const { width, points } of strokes) points.forEach((at, index) => line(width, points[index - 1] ?? at, at));
  changed();
}

function line(width, from, to) {
  const context = layer.getContext("2d");
  Object.assign(context, { lineWidth: width, lineCap: "round", strokeStyle: pattern(context) });
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x + 0.01, to.y); // a line without length draws nothing
  context.stroke();
}

const widthOf = (size) => size * Math.max(layer.width, layer.height);

/** A checkerboard, which stands for what is painted. */
function pattern(context) {
  const tile = canvasOf(16, 16), drawing = tile.getContext("2d");
  drawing.fillStyle = "#fff";
  drawing.fillRect(0, 0, 16, 16);
  drawing.fillStyle = "#777";
  drawing.fillRect(0, 0, 8, 8);
  drawing.fillRect(8, 8, 8, 8);
  return context.createPattern(tile, "repeat");
}

function ring(context, x, y, diameter) {
  for (const [strokeStyle, lineWidth] of [["#fff", 4], ["#000", 2]]) {
    Object.assign(context, { strokeStyle, lineWidth });
    context.beginPath();
    context.arc(x, y, diameter / 2, 0, 2 * Math.PI);
    context.stroke();
  }
}
