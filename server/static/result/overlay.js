// The boxes of a caption, laid over its picture.
import { boxOf, elementsOf, isObject, nameOf } from "../caption/document.js";
import { element } from "../dom.js";

/** The caption that a picture was drawn from, if it has boxes; null otherwise. */
export function captionOf(picture) {
  const caption = picture.body.json_prompt ?? parsed(picture.revised);
  return isObject(caption) && elementsOf(caption).some(boxOf) ? caption : null;
}

export function overlay(caption) {
  return element("div", { className: "overlay" }, ...elementsOf(caption).flatMap((each) => (boxOf(each) ? [outline(each)] : [])));
}

function outline(each) {
  const [top, left, bottom, right] = boxOf(each).map((value) => value / 10);
  const made = element("div", {}, element("span", { textContent: nameOf(each) }));
  Object.assign(made.style, { top: `${top}%`, left: `${left}%`, height: `${bottom - top}%`, width: `${right - left}%` });
  return made;
}

function parsed(text) {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}
