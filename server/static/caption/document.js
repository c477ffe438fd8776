// A structured caption as a value. It may hold anything that is JSON: people edit it by hand.

export const ELEMENTS = "compositional_deconstruction.elements";
export const MOST_COLOURS = { element: 5, style: 16 };
export const STYLE_KINDS = { photo: "Photo", art_style: "Art style" };
// The order of keys that the model was trained on.
const ORDER = {
  caption: ["high_level_description", "style_description", "compositional_deconstruction"],
  composition: ["background", "elements"],
  photo: ["aesthetics", "lighting", "photo", "medium", "color_palette"],
  art_style: ["aesthetics", "lighting", "medium", "art_style", "color_palette"],
  element: ["type", "bbox", "text", "desc", "color_palette"],
};

export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

export const blank = () => ({ compositional_deconstruction: { background: "", elements: [] } });

/** The list of elements; empty if the caption has none. */
export function elementsOf(caption) {
  const list = caption?.compositional_deconstruction?.elements;
  return Array.isArray(list) ? list : [];
}

/** The composition of a caption that is being edited, created where it is missing. */
export function compositionIn(caption) {
  if (!isObject(caption.compositional_deconstruction)) caption.compositional_deconstruction = { background: "" };
  const composition = caption.compositional_deconstruction;
  if (!Array.isArray(composition.elements)) composition.elements = [];
  return composition;
}

/** `[top, left, bottom, right]` in thousandths; null if the element has no such box. */
export function boxOf(element) {
  const box = element?.bbox;
  const isBox = Array.isArray(box) && box.length === 4 && box.every(Number.isFinite);
  return isBox && box[0] <= box[2] && box[1] <= box[3] ? box : null;
}

export const textOf = (value) => (typeof value === "string" ? value : "");

export const coloursOf = (object) => (Array.isArray(object?.color_palette) ? object.color_palette : []);

/** What people call an element: its text, its description or its kind. */
export function nameOf(element) {
  if (!isObject(element)) return "not an object";
  const text = element.type === "text" && textOf(element.text).trim();
  return text ? `“${text}”` : textOf(element.desc).trim() || (element.type === "text" ? "text" : "object");
}

/** Set an optional key, or remove it where the value is empty. */
export function setOptional(object, key, value) {
  if (value === null || value.length === 0) delete object[key];
  else object[key] = value;
}

export function styleKindOf(caption) {
  const style = caption?.style_description;
  return isObject(style) ? Object.keys(STYLE_KINDS).find((kind) => kind in style) ?? "art_style" : "";
}

/** The same caption with its keys in the order of the schema; unknown keys come last. */
export function tidy(caption) {
  const tidied = inOrder(caption, ORDER.caption);
  if (isObject(tidied.style_description)) tidied.style_description = inOrder(tidied.style_description, ORDER[styleKindOf(caption)]);
  const composition = tidied.compositional_deconstruction;
  if (!isObject(composition)) return tidied;
  const elements = elementsOf(caption).map((each) => (isObject(each) ? inOrder(each, ORDER.element) : each));
  const list = Array.isArray(composition.elements) ? { elements } : {};
  tidied.compositional_deconstruction = inOrder({ ...composition, ...list }, ORDER.composition);
  return tidied;
}

function inOrder(object, keys) {
  const known = keys.filter((key) => key in object).map((key) => [key, object[key]]);
  return { ...Object.fromEntries(known), ...object };
}

/** Indented JSON with lists of plain values in one line. */
export function format(caption) {
  return JSON.stringify(caption, null, 2).replace(/\[\n\s+([^[\]{}]*?)\n\s*\]/g, (_, items) => `[${items.replace(/\n\s*/g, " ")}]`);
}
