// The caption that is edited: its value, the selected element, and what the server says about it.
import { blank, elementsOf, isObject, tidy } from "./document.js";

const MOST_STEPS = 100;
const listeners = [];
const past = [];
let caption = blank();
let selected = -1;
let issues = [];
let lastKey = null;

/** `listener()` is called after each change. */
export const subscribe = (listener) => listeners.push(listener);
export const current = () => caption;
export const selection = () => selected;
export const selectedElement = () => elementsOf(caption)[selected];
export const issuesFound = () => issues;
export const canUndo = () => past.length > 0;

/** Change a copy of the caption. Changes in a row with the same key are undone together. */
export function edit(change, key = null) {
  const next = structuredClone(caption);
  change(next);
  replace(tidy(next), key);
}

/** Change the element at `index`. */
export function editElement(index, change, key = null) {
  edit((next) => {
    const element = elementsOf(next)[index];
    if (isObject(element)) change(element);
  }, key === null ? null : `${index} ${key}`);
}

export function replace(next, key = null) {
  if (key === null || key !== lastKey) past.push(caption);
  if (past.length > MOST_STEPS) past.shift();
  lastKey = key;
  show(next);
}

export function undo() {
  lastKey = null;
  if (canUndo()) show(past.pop());
}

export function select(index) {
  lastKey = null;
  selected = index;
  notify();
}

export function report(found) {
  issues = found;
  notify();
}

function show(next) {
  caption = next;
  selected = Math.min(selected, elementsOf(caption).length - 1);
  notify();
}

function notify() {
  for (const listener of listeners) listener();
}
