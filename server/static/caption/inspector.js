// The fields of the selected element.
import { $, setValue } from "../dom.js";
import { MOST_COLOURS, boxOf, coloursOf, isObject, setOptional, textOf } from "./document.js";
import { palette } from "./palette.js";
import { editElement, selectedElement, selection, subscribe } from "./store.js";

const radios = document.getElementsByName("element-type");
const DEFAULT_BOX = [350, 350, 650, 650];
let colours = null;

export function startInspector() {
  for (const radio of radios) radio.addEventListener("change", () => change((element) => setType(element, radio.value)));
  $("element-text").addEventListener("input", () => change((element) => { element.text = $("element-text").value; }, "text"));
  $("element-desc").addEventListener("input", () => change((element) => { element.desc = $("element-desc").value; }, "desc"));
  $("has-box").addEventListener("change", () => change((element) => setOptional(element, "bbox", $("has-box").checked ? DEFAULT_BOX : null)));
  for (const side of [0, 1, 2, 3]) $(`box-${side}`).addEventListener("change", () => setSide(side));
  colours = palette($("element-palette"), {
    label: "Colours of the element", most: MOST_COLOURS.element,
    read: () => coloursOf(selectedElement()),
    write: (list, key) => change((element) => setOptional(element, "color_palette", list), key),
  });
  subscribe(render);
  render();
}

function change(action, key = null) {
  editElement(selection(), action, key);
}

function setType(element, type) {
  element.type = type;
  if (type === "obj") delete element.text;
  else element.text = textOf(element.text);
}

/** A side beyond its opposite pushes it along. */
function setSide(side) {
  const value = Math.min(1000, Math.max(0, Math.round(Number($(`box-${side}`).value) || 0)));
  change((element) => {
    const box = [...boxOf(element) ?? DEFAULT_BOX];
    const opposite = (side + 2) % 4;
    box[side] = value;
    box[opposite] = side < 2 ? Math.max(value, box[opposite]) : Math.min(value, box[opposite]);
    element.bbox = box;
  });
}

function render() {
  const element = selectedElement();
  $("inspector").hidden = !isObject(element);
  if (!isObject(element)) return;
  for (const radio of radios) radio.checked = radio.value === element.type;
  $("element-text").closest(".field").hidden = element.type !== "text";
  setValue($("element-text"), textOf(element.text));
  setValue($("element-desc"), textOf(element.desc));
  showBox(boxOf(element));
  colours.render();
}

function showBox(box) {
  $("has-box").checked = box !== null;
  $("box-fields").hidden = box === null;
  box?.forEach((value, side) => setValue($(`box-${side}`), String(value)));
}
