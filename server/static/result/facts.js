// The table of facts, with one column for each picture.
import { element } from "../dom.js";

const seconds = (value) => `${value.toFixed(2)} s`;

const ROWS = {
  Seed: (picture) => String(picture.seed),
  Size: (picture) => picture.size,
  Preset: (picture) => picture.body.preset,
  Prompt: (picture) => picture.alt,
  Time: (picture) => seconds(picture.seconds),
  Stages: (picture) => picture.timings || "…",
};
const MEASURED = ["Time", "Stages"]; // differ between any two pictures

export function fillFacts(body, pictures) {
  body.replaceChildren(...Object.entries(ROWS).map(([name, read]) => rowOf(name, pictures.map(read))));
}

function rowOf(name, values) {
  const differs = new Set(values).size > 1 && !MEASURED.includes(name);
  const cells = values.map((textContent) => element("td", { textContent }));
  return element("tr", { className: differs ? "differs" : "" }, element("th", { textContent: name, scope: "row" }), ...cells);
}
