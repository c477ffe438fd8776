// The image that a request starts from: dropped, pasted, chosen, or a result.
import { $ } from "../dom.js";
import { offerOwnSize } from "../form/settings.js";
import { say, shownPicture } from "../result/stage.js";
import { centreBrush, startBrush } from "./brush.js";
import { canUndo, coveredShare, isMasked, maskFile, openMask, showMargins, whenMasked } from "./mask.js";
import { decode, isTransparent } from "./picture.js";

const SIDES = ["left", "top", "right", "bottom"];
const STRENGTH = 0.7, MASKED_STRENGTH = 1; // as the server
let isOffered = false;
let picked = null; // a picture, with `isTransparent`
let isStrengthChosen = false;

export function startSource() {
  startBrush();
  whenMasked(showMask);
  $("source-pick").addEventListener("click", () => $("source-file").click());
  $("source-file").addEventListener("change", () => {
    take($("source-file").files[0]);
    $("source-file").value = "";
  });
  $("source-remove").addEventListener("click", () => {
    removeSource();
    $("source-pick").focus();
  });
  $("edit-this").addEventListener("click", takeResult);
  $("strength").addEventListener("input", () => chooseStrength($("strength").value));
  for (const side of SIDES) $(`margin-${side}`).addEventListener("input", showExpansion);
  startDropping();
  document.addEventListener("paste", onPaste);
}

/** Offer it if the model takes images. */
export function offerSource(offered) {
  isOffered = offered;
  $("source").hidden = $("edit-this").hidden = !offered;
  document.body.dataset.drop = `Drop an image to restore its settings${offered ? ", or to draw from it" : ""}`;
  offered ? show() : removeSource();
}

export const takesImages = () => isOffered;

export const hasSource = () => picked !== null;

/** The fields and files of an edit; null if the request starts from nothing. */
export async function edit() {
  if (!picked) return null;
  const { file } = picked, mask = await maskFile(`${file.name.replace(/\.\w+$/, "")}-mask.png`);
  const expand = margins();
  const fields = { strength: Number($("strength").value), ...(hasMargins(expand) ? { expand } : {}) };
  return { fields, files: { image: file, ...(mask ? { mask } : {}) } };
}

/** Draw from this image file. */
export async function take(file) {
  try {
    const picture = await decode(file);
    picked = { ...picture, isTransparent: isTransparent(picture) };
  } catch {
    return say(`${file.name} is not an image that this browser can show.`, true);
  }
  for (const side of SIDES) $(`margin-${side}`).value = 0;
  openMask(picked);
  centreBrush();
  show();
  say(`${file.name} is the image to draw from.`);
}

export function removeSource() {
  picked = null;
  isStrengthChosen = false;
  show();
}

/** As if the user had set it. */
export function chooseStrength(value) {
  isStrengthChosen = true;
  showStrength(value);
}

function show() {
  $("source-fields").hidden = $("source-remove").hidden = !picked;
  $("source-hint").hidden = Boolean(picked);
  showExpansion();
}

function showExpansion() {
  const { left, top, right, bottom } = margins();
  if (picked) showMargins({ left, top, right, bottom });
  offerOwnSize(picked && { width: left + picked.width + right, height: top + picked.height + bottom });
  showMask();
}

function showMask() {
  $("mask-undo").disabled = !canUndo();
  $("mask-clear").disabled = !isMasked();
  $("mask-state").textContent = describe();
  if (!isStrengthChosen) showStrength(isPart() ? MASKED_STRENGTH : STRENGTH);
}

function describe() {
  if (isMasked()) return `${Math.max(1, Math.round(coveredShare() * 100))}% of the image is painted, the rest is kept.`;
  if (picked?.isTransparent) return "Its transparent part is painted, the rest is kept.";
  if (hasMargins(margins())) return "What is added is painted, the image is kept.";
  return "The whole image is redrawn. Brush over a part to keep the rest.";
}

/** Whether only a part of the picture is painted. */
const isPart = () => isMasked() || picked?.isTransparent || hasMargins(margins());

function showStrength(value) {
  $("strength").value = $("strength-value").textContent = value;
}

function margins() {
  return Object.fromEntries(SIDES.map((side) => [side, Math.max(0, Math.round(Number($(`margin-${side}`).value)))]));
}

const hasMargins = (expand) => Object.values(expand).some(Boolean);

function takeResult() {
  const { blob, seed, format } = shownPicture();
  take(new File([blob], `seed-${seed}.${format}`, { type: blob.type }));
}

function startDropping() {
  const mark = (event, isOver) => {
    $("source").classList.toggle("over", isOver);
    if (isOver) event.preventDefault();
  };
  $("source").addEventListener("dragover", (event) => mark(event, event.dataTransfer.types.includes("Files")));
  $("source").addEventListener("dragleave", (event) => mark(event, false));
  $("source").addEventListener("drop", (event) => {
    mark(event, false);
    const [file] = event.dataTransfer.files;
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}

/** An image, unless a field takes the text that comes with it. */
function onPaste(event) {
  const image = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  const isForField = event.target.matches?.("input, textarea") && event.clipboardData.types.includes("text/plain");
  if (!image || !isOffered || isForField) return;
  event.preventDefault();
  take(image);
}
