// The pictures of this browser: shown as a list, deleted one by one or all.
import { $, element } from "../dom.js";
import { forget, say, show, whenShown } from "../result/stage.js";
import * as database from "./database.js";
import { startRestoring } from "./restore.js";

const MOST = 200; // the oldest are deleted
const pictures = []; // the oldest first

export async function startHistory() {
  whenShown(mark);
  $("clear").addEventListener("click", clear);
  startRestoring();
  for (const record of await database.all()) add(record);
}

/** Keep a new picture. Returns it with its URL. */
export function keep(record) {
  const picture = add({ ...record });
  update(picture);
  while (pictures.length > MOST) remove(pictures[0]);
  return picture;
}

/** Store the picture as it is now. */
export function update(picture) {
  const { url, item, saved, ...record } = picture;
  picture.saved = Promise.resolve(saved).then(async (id) => database.put(id === undefined ? record : { ...record, id }));
}

function add({ id, ...record }) {
  const picture = { ...record, saved: id, url: URL.createObjectURL(record.blob) };
  picture.item = itemOf(picture);
  pictures.push(picture);
  $("gallery").prepend(picture.item);
  showEmptiness();
  return picture;
}

function itemOf(picture) {
  const image = Object.assign(new Image(), { src: picture.url, alt: `Seed ${picture.seed}: ${picture.alt.slice(0, 80)}` });
  const pick = element("button", { type: "button", className: "pick", title: `Seed ${picture.seed}` }, image);
  const deletion = element("button", { type: "button", className: "delete", textContent: "×", attributes: { "aria-label": `Delete the image of seed ${picture.seed}` } });
  pick.addEventListener("click", () => show(picture));
  deletion.addEventListener("click", () => {
    remove(picture);
    ($("gallery").querySelector(".pick") ?? $("open-image")).focus();
  });
  return element("li", {}, pick, deletion);
}

async function remove(picture) {
  pictures.splice(pictures.indexOf(picture), 1);
  picture.item.remove();
  forget(picture);
  URL.revokeObjectURL(picture.url);
  showEmptiness();
  const id = await picture.saved;
  if (id !== undefined) await database.remove(id);
}

async function clear() {
  for (const picture of [...pictures]) remove(picture);
  await database.clear();
  say("The history is deleted.");
  $("open-image").focus();
}

function mark(shown) {
  for (const picture of pictures) picture.item.firstElementChild.setAttribute("aria-current", picture === shown);
}

function showEmptiness() {
  $("none").hidden = pictures.length > 0;
  $("clear").hidden = pictures.length === 0;
}
