// The image that an edit started from, over its result up to an edge that can be moved.
import { element } from "../dom.js";
import { decode, layout, resize } from "./picture.js";

/** Elements for the frame of a picture; none if it is not an edit. */
export function curtain({ files, body }) {
  if (!files) return [];
  const before = element("canvas", { className: "before", attributes: { role: "img", "aria-label": "Image before the edit" } });
  const edge = element("input", { type: "range", className: "edge", min: 0, max: 100, value: 0, attributes: { "aria-label": "Show the image before the edit" } });
  edge.addEventListener("input", () => edge.parentElement.style.setProperty("--edge", `${edge.value}%`));
  decode(files.image).then((picture) => draw(before, picture, body.expand), () => {});
  return [before, edge, element("span", { className: "knob" })];
}

function draw(canvas, picture, margins) {
  const { width, height, x, y, w, h } = layout(picture, margins);
  resize(canvas, width, height).getContext("2d").drawImage(picture.shown, x, y, w, h);
}
