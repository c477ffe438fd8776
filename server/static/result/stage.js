// The result: previews and images of the running request, and one or two images with their facts.
import { $, download, element } from "../dom.js";
import { curtain } from "../edit/curtain.js";
import { curlOf } from "./curl.js";
import { fillFacts } from "./facts.js";
import { captionOf, overlay } from "./overlay.js";

let shown = null; // the picture whose facts are listed
let pinned = null; // the picture that it is compared with
let tiles = []; // the frames of a request for several images
let onShow = () => {};

/** `listener(picture)` is called when a picture is shown. */
export const whenShown = (listener) => { onShow = listener; };

export const shownPicture = () => shown;

export function startStage() {
  $("again").addEventListener("click", () => { $("seed").value = shown.seed; $("seed").focus(); });
  $("save").addEventListener("click", () => download(shown.url, `seed-${shown.seed}.${shown.format}`));
  $("copy").addEventListener("click", () => navigator.clipboard.writeText(curlOf(shown)).then(() => say("Copied."), showCommand));
  $("pin").addEventListener("click", () => pin(pinned ? null : shown));
  $("overlay").addEventListener("change", () => redraw());
}

export function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", isError);
}

function showCommand() {
  $("command").open = true;
  $("curl").focus();
}

/** Make room for the images of a request. */
export function beginJob({ body }) {
  tiles = body.n > 1 ? Array.from({ length: body.n }, () => element("figure", { className: "frame" }, shotOf(body.size))) : [];
  if (tiles.length) fillPicture(tiles);
}

export function showPreview(index, url, size) {
  const shot = shotOf(size, Object.assign(new Image(), { src: url, alt: "Preview", className: "preview" }));
  if (tiles.length) tiles[index].replaceChildren(shot);
  else fillPicture([...(pinned ? [frameOf(pinned)] : []), element("figure", { className: "frame" }, shot)]);
}

/** A finished image of the running request. */
export function addResult(index, picture) {
  if (!tiles.length) return show(picture);
  const open = element("button", { type: "button", title: `Seed ${picture.seed}`, attributes: { "aria-label": `Open the image of seed ${picture.seed}` } });
  open.addEventListener("click", () => show(picture));
  tiles[index].replaceChildren(shotOf(picture.size, imageOf(picture)), open);
  describe(picture);
}

/** Show one picture, beside the one that it is compared with. */
export function show(picture) {
  tiles = [];
  shown = picture;
  redraw();
  describe(picture);
}

/** The facts of the picture that is shown have changed. */
export const refresh = (picture) => { if (picture === shown) describe(picture); };

/** Forget a picture that was deleted. */
export function forget(picture) {
  if (pinned === picture) pin(null);
  if (shown !== picture) return;
  shown = null;
  $("facts").hidden = true;
  $("picture").replaceChildren(element("p", { textContent: "The image appears here." }));
}

function pin(picture) {
  pinned = picture;
  $("pin").setAttribute("aria-pressed", pinned !== null);
  $("pin").textContent = pinned ? "Stop comparing" : "Compare";
  if (shown) show(shown);
  if (pinned) say("Open or generate another image to see both side by side.");
}

function redraw() {
  if (shown && !tiles.length) fillPicture([...new Set([pinned, shown])].filter(Boolean).map(frameOf));
}

function describe(picture) {
  shown = picture;
  fillFacts($("list").tBodies[0], [...new Set([pinned, picture])].filter(Boolean));
  $("curl").textContent = curlOf(picture);
  $("curl-files").replaceChildren(...Object.values(picture.files ?? {}).map(saving));
  $("facts").hidden = false;
  $("overlay-choice").hidden = captionOf(picture) === null;
  onShow(picture);
}

/** A file that the curl command reads. */
function saving(file) {
  const button = element("button", { type: "button", className: "small", textContent: `Save ${file.name}` });
  button.addEventListener("click", () => {
    const url = URL.createObjectURL(file);
    download(url, file.name);
    setTimeout(() => URL.revokeObjectURL(url));
  });
  return button;
}

function fillPicture(frames) {
  $("picture").replaceChildren(...frames);
  $("picture").classList.toggle("many", frames.length > 1);
}

function frameOf(picture) {
  const boxes = $("overlay").checked && captionOf(picture) ? [overlay(captionOf(picture))] : [];
  const label = pinned ? [element("figcaption", { textContent: `Seed ${picture.seed}, ${picture.body.preset}` })] : [];
  return element("figure", { className: "frame" }, shotOf(picture.size, imageOf(picture), ...curtain(picture), ...boxes), ...label);
}

/** A room of the image's shape. */
function shotOf(size, ...content) {
  const [width, height] = size.split("x").map(Number);
  const shot = element("div", { className: "shot" }, ...content);
  shot.style.setProperty("--width", width);
  shot.style.setProperty("--aspect", width / height);
  return shot;
}

const imageOf = (picture) => Object.assign(new Image(), { src: picture.url, alt: picture.alt });
