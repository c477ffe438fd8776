// A list of colours: change, remove, add.
import { element, reconcile } from "../dom.js";
import { isColour } from "./colours.js";

const FIRST = "#3447CF";

/** Build it in `room`. `read()` returns the colours; `write(colours, key)` stores them. */
export function palette(room, { label, most, read, write }) {
  const swatches = element("div", { className: "palette" });
  const add = element("button", { type: "button", className: "small", textContent: "Add colour" });
  room.classList.add("palette");
  room.setAttribute("role", "group");
  room.setAttribute("aria-label", label);
  room.append(swatches, add);
  add.addEventListener("click", () => {
    write([...read(), read().at(-1) ?? FIRST], null);
    swatches.lastElementChild?.firstElementChild.focus();
  });
  swatches.addEventListener("input", (event) => write(read().with(indexOf(event), event.target.value.toUpperCase()), `colour ${indexOf(event)}`));
  swatches.addEventListener("click", (event) => {
    if (!event.target.matches("button")) return;
    write(read().toSpliced(indexOf(event), 1), null);
    add.focus();
  });

  function render() {
    reconcile(swatches, read().length, createSwatch, updateSwatch);
    add.hidden = read().length >= most;
  }

  function updateSwatch(swatch, index) {
    const [input, remove] = swatch.children;
    const colour = read()[index];
    if (isColour(colour) && input.value !== colour.toLowerCase()) input.value = colour;
    input.title = String(colour);
    input.setAttribute("aria-label", `Colour ${index + 1}`);
    remove.setAttribute("aria-label", `Remove colour ${index + 1}`);
  }

  return { render };
}

function createSwatch() {
  return element("span", { className: "swatch" }, element("input", { type: "color" }), element("button", { type: "button", textContent: "×" }));
}

function indexOf(event) {
  const swatch = event.target.closest(".swatch");
  return [...swatch.parentElement.children].indexOf(swatch);
}
