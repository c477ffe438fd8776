// The adapters that a request applies, each with its scale.
import { $, element } from "../dom.js";
import { contribute } from "./request.js";

const MOST = 4;
let offered = new Map();

export function startAdapters() {
  $("adapter").addEventListener("change", () => {
    const row = add($("adapter").value);
    refresh();
    row.querySelector("input").focus();
  });
  contribute(addAdapters);
}

/** Offer those of `/v1/adapters` that can be used. */
export function offerAdapters(adapters) {
  offered = new Map(adapters.filter(({ status }) => status === "ready").map((adapter) => [adapter.name, adapter]));
  for (const row of rows()) if (!offered.has(row.dataset.name)) row.remove();
  $("adapters").hidden = offered.size === 0;
  refresh();
}

/** Choose the adapters of an image, as far as they are offered. */
export function restoreAdapters(used) {
  $("chosen-adapters").replaceChildren();
  for (const { name, scale } of used) if (offered.has(name)) add(name, scale);
  refresh();
}

const rows = () => [...$("chosen-adapters").children];

function addAdapters(body) {
  const adapters = rows().map((row) => ({ name: row.dataset.name, scale: Number(row.querySelector("input").value) }));
  if (adapters.length) body.adapters = adapters;
}

function add(name, scale = offered.get(name).scale) {
  const slider = element("input", { type: "range", min: -2, max: 2, step: 0.05, value: scale, attributes: { "aria-label": `Scale of ${name}` } });
  const shown = element("span", { className: "value", textContent: slider.value });
  slider.addEventListener("input", () => { shown.textContent = slider.value; });
  const row = element("li", { className: "adapter" }, element("span", { textContent: name }), slider, shown, removal(name), hint(name));
  row.dataset.name = name;
  $("chosen-adapters").append(row);
  return row;
}

function removal(name) {
  const button = element("button", { type: "button", className: "small", textContent: "Remove", attributes: { "aria-label": `Remove ${name}` } });
  button.addEventListener("click", () => {
    button.closest("li").remove();
    refresh();
    $("adapter").focus();
  });
  return button;
}

function hint(name) {
  const words = offered.get(name).trigger_words.join(", ");
  return element("p", { className: "hint", textContent: words && `Words for the prompt: ${words}` });
}

/** What can be added, and the preset that the adapters bring. */
function refresh() {
  const names = rows().map((row) => row.dataset.name);
  const left = [...offered.keys()].filter((name) => !names.includes(name));
  $("adapter").replaceChildren(new Option("Add an adapter…", ""), ...left.map((name) => new Option(name)));
  $("adapter").disabled = !left.length || names.length >= MOST;
  offerPreset(names.map((name) => offered.get(name)).find(({ preset }) => preset));
  $("form").dispatchEvent(new Event("change"));
}

/** An empty preset leaves it to the adapter. */
function offerPreset(adapter) {
  const presets = $("preset"), before = [...presets.options].find(({ value }) => value === "");
  const text = adapter ? `of ${adapter.name}, ${adapter.preset.num_inference_steps} steps` : undefined;
  if (before?.text === text) return;
  if (!before) presets.dataset.before = presets.value;
  before?.remove();
  if (adapter) presets.prepend(new Option(text, "", false, true));
  else presets.value = presets.dataset.before;
}
