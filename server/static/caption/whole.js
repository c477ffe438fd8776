// The fields of the whole caption: description, background and style.
import { $, setValue } from "../dom.js";
import { colourIn, withColour } from "./colours.js";
import { MOST_COLOURS, STYLE_KINDS, coloursOf, compositionIn, isObject, setOptional, styleKindOf, textOf } from "./document.js";
import { palette } from "./palette.js";
import { current, edit, subscribe } from "./store.js";

const STYLE_FIELDS = ["aesthetics", "lighting", "medium"];
let colours = null;

export function startWhole() {
  $("description").addEventListener("input", () => edit((next) => setOptional(next, "high_level_description", $("description").value), "description"));
  $("background").addEventListener("input", () => setBackground($("background").value, "background"));
  $("background-colour").addEventListener("input", () =>
    setBackground(withColour($("background").value, $("background-colour").value.toUpperCase()), "background colour"));
  $("style").addEventListener("change", () => edit((next) => setKind(next, $("style").value)));
  $("style-kind").addEventListener("input", () => setStyle($("style").value, $("style-kind").value));
  for (const key of STYLE_FIELDS) $(`style-${key}`).addEventListener("input", () => setStyle(key, $(`style-${key}`).value));
  colours = palette($("style-palette"), {
    label: "Colours of the style", most: MOST_COLOURS.style,
    read: () => coloursOf(current().style_description),
    write: (list, key) => edit((next) => setOptional(next.style_description, "color_palette", list), key && `style ${key}`),
  });
  subscribe(render);
  render();
}

const setBackground = (text, key) => edit((next) => { compositionIn(next).background = text; }, key);

const setStyle = (key, value) => edit((next) => { next.style_description[key] = value; }, `style ${key}`);

/** Change between photo, art and no style; the text of the kind is kept. */
function setKind(caption, kind) {
  const style = isObject(caption.style_description) ? caption.style_description : { aesthetics: "", lighting: "", medium: "" };
  const text = Object.keys(STYLE_KINDS).map((each) => textOf(style[each])).find(Boolean) ?? "";
  for (const each of Object.keys(STYLE_KINDS)) delete style[each];
  if (kind) caption.style_description = { ...style, [kind]: text };
  else delete caption.style_description;
}

function render() {
  const caption = current();
  const background = textOf(caption.compositional_deconstruction?.background);
  setValue($("description"), textOf(caption.high_level_description));
  setValue($("background"), background);
  setValue($("background-colour"), (colourIn(background) ?? "#FFFFFF").toLowerCase());
  showStyle(styleKindOf(caption), caption.style_description);
}

function showStyle(kind, style) {
  setValue($("style"), kind);
  $("style-fields").hidden = !kind;
  if (!kind) return;
  $("style-kind-label").textContent = STYLE_KINDS[kind];
  $("style-kind-field").dataset.path = `style_description.${kind}`;
  setValue($("style-kind"), textOf(style[kind]));
  for (const key of STYLE_FIELDS) setValue($(`style-${key}`), textOf(style[key]));
  colours.render();
}
