// Colours of captions.
import { coloursOf } from "./document.js";

const HEX = /#[0-9a-f]{6}\b/i;
const NAMES = {
  red: "#E11E23", green: "#199632", blue: "#1E46DC", yellow: "#FADC28", orange: "#FA8714", purple: "#8228AA",
  pink: "#FA96BE", cyan: "#32CDDC", turquoise: "#32CDDC", black: "#0A0A0A", white: "#FFFFFF", gray: "#808080", grey: "#808080",
  brown: "#6E411E", beige: "#F0E6D2", cream: "#FFF6DC", navy: "#14234F", teal: "#0F7A7A", gold: "#D4AF37", silver: "#C0C0C0",
};
const INKS = ["#3447CF", "#C2410C", "#0F766E", "#A21CAF", "#B45309", "#4D7C0F", "#BE123C", "#0369A1"];

export const isColour = (value) => typeof value === "string" && /^#[0-9a-f]{6}$/i.test(value);

/** The first colour that a text names, as #RRGGBB; undefined if there is none. */
export function colourIn(text) {
  const hex = text.match(HEX)?.[0];
  if (hex) return hex.toUpperCase();
  const word = text.toLowerCase().split(/[^a-z]+/).find((each) => Object.hasOwn(NAMES, each));
  return word && NAMES[word];
}

/** The text with `colour` in place of the #RRGGBB that it names, or added to it. */
export function withColour(text, colour) {
  if (HEX.test(text)) return text.replace(HEX, colour);
  return text.trim() ? `${text.trim()}, ${colour}` : `plain ${colour} background`;
}

/** The colour that stands for an element on the canvas. */
export function inkOf(element, index) {
  const own = coloursOf(element).find(isColour) ?? colourIn(typeof element?.desc === "string" ? element.desc : "");
  return own ?? INKS[index % INKS.length];
}
