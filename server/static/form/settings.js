// Size, preset, seed, number of images and format.
import { setAspect } from "../caption/canvas.js";
import { $ } from "../dom.js";
import { InputError, contribute } from "./request.js";
import { ownSize, sizes } from "./sizes.js";

const MAX_SEED = 2 ** 31 - 1;
let model = null;

export function startSettings() {
  contribute(addSettings);
  $("size").addEventListener("change", showSize);
}

/** Offer what the model of `/v1/models` allows. */
export function showModel(served) {
  model = served;
  $("model").textContent = model.id;
  fill($("size"), sizes(model), model.default_size);
  fill($("preset"), Object.entries(model.presets).map(([name, preset]) => [name, describe(name, preset)]), model.default_preset);
  $("n").max = model.limits.max_n;
  $("four").hidden = model.limits.max_n < 4;
  $("expand").hidden = !model.features.includes("magic_prompt");
  showSize();
}

/** Offer and choose the size of an image to draw from; null takes the offer back. */
export function offerOwnSize(image) {
  const list = $("size"), before = list.querySelector("[data-before]");
  const isOwn = before?.selected ?? true;
  const chosen = before?.selected ? before.dataset.before : list.value;
  before?.remove();
  if (before) list.value = chosen;
  if (image) {
    const size = ownSize(model, image), option = new Option(`${size} (image)`, size, false, isOwn);
    option.dataset.before = chosen;
    list.prepend(option);
  }
  showSize();
  $("form").dispatchEvent(new Event("change"));
}

/** Set the form to the settings of an image; `null` leaves a setting alone. */
export function restoreSettings({ size, preset, seed }) {
  if (size) select($("size"), size);
  if (preset) select($("preset"), preset);
  if (seed !== undefined) $("seed").value = seed;
  $("n").value = 1;
  showSize();
  $("form").dispatchEvent(new Event("change"));
}

function addSettings(body) {
  body.size = $("size").value;
  body.preset = $("preset").value;
  body.n = Number($("n").value);
  body.output_format = $("format").value;
  const seed = $("seed").value.trim();
  if (!seed) return;
  if (!/^\d{1,10}$/.test(seed) || Number(seed) > MAX_SEED) throw new InputError(`A whole number from 0 to ${MAX_SEED}, or nothing.`, "seed");
  body.seed = Number(seed);
}

function describe(name, preset) {
  return `${name.replace(/^V4_/, "").replace(/_\d+$/, "").toLowerCase()} (${preset.num_inference_steps})`;
}

function fill(list, options, chosen) {
  const kept = options.some(([value]) => value === list.value) ? list.value : chosen;
  list.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === kept)));
}

function select(list, value) {
  if (![...list.options].some((option) => option.value === value)) list.add(new Option(value, value));
  list.value = value;
}

function showSize() {
  const [width, height] = $("size").value.split("x").map(Number);
  setAspect(width / height);
}
