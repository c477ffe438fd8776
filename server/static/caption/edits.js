// Edits of the list of elements.
import { compositionIn, elementsOf } from "./document.js";
import { current, edit, editElement, select, selection } from "./store.js";

const CENTRE = [350, 350, 650, 650];

/** Add an element of a type (`obj` or `text`) and select it. */
export function addElement(type, bbox = CENTRE, key = null) {
  const text = type === "text" ? { text: "" } : {};
  const index = elementsOf(current()).length;
  edit((next) => compositionIn(next).elements.push({ type, bbox, ...text, desc: "" }), key);
  select(index);
}

export const setBox = (index, bbox, key) => editElement(index, (element) => { element.bbox = bbox; }, key);

export function removeElement(index) {
  edit((next) => elementsOf(next).splice(index, 1));
  select(Math.min(index, elementsOf(current()).length - 1));
}

/** Move an element by one place; later elements are in front. */
export function reorder(index, by) {
  const target = index + by;
  if (target < 0 || target >= elementsOf(current()).length) return;
  edit((next) => {
    const list = elementsOf(next);
    [list[index], list[target]] = [list[target], list[index]];
  });
  if (selection() === index) select(target);
  else if (selection() === target) select(index);
}
