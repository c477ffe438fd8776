// The table of facts, with one column for each picture.
import { element } from "../dom.js";

const seconds = (value) => `${value.toFixed(2)} s`;

const ROWS = {
  Seed: (picture) => String(picture.seed),
  Size: (picture) => picture.size,
  Preset: (picture) => picture.body.preset,
  Adapters: (picture) => (picture.body.adapters ?? []).map(({ name, scale }) => `${name} ${scale}`).join(", "),
  Image: ({ files }) => files?.image.name,
  Strength: ({ files, body }) => files && String(body.strength),
  Prompt: (picture) => picture.alt,
  Time: (picture) => seconds(picture.seconds),
  Stages: (picture) => picture.timings || "…",
};
const MEASURED = ["Time", "Stages"]; // differ between any two pictures

export function fillFacts(body, pictures) {
  const rows = Object.entries(ROWS).map(([name, read]) => [name, pictures.map(read)]);
  body.replaceChildren(...rows.filter(([, values]) => values.some(Boolean)).map(([name, values]) => rowOf(name, values)));
}

function rowOf(name, values) {
  const differs = new Set(values).size > 1 && !MEASURED.includes(name);
  const cells = values.map((textContent) => element("td", { textContent }));
  return element("tr", { className: differs ? "differs" : "" }, element("th", { textContent: name, scope: "row" }), ...cells);
}
