// The list of elements: select, reorder, remove, add.
import { $, element, reconcile } from "../dom.js";
import { inkOf } from "./colours.js";
import { ELEMENTS, elementsOf, nameOf } from "./document.js";
import { addElement, removeElement, reorder } from "./edits.js";
import { isMild, issuesBelow } from "./faults.js";
import { current, select, selection, subscribe } from "./store.js";

export function startElements() {
  $("add-object").addEventListener("click", () => add("obj", "element-desc"));
  $("add-text").addEventListener("click", () => add("text", "element-text"));
  $("elements").addEventListener("click", onClick);
  subscribe(render);
  render();
}

function add(type, field) {
  addElement(type);
  $(field).focus();
}

function render() {
  const list = elementsOf(current());
  reconcile($("elements"), list.length, createItem, (item, index) => updateItem(item, index, list));
  $("no-elements").hidden = list.length > 0;
}

function createItem() {
  const pick = element("button", { type: "button", className: "pick" }, ...["dot", "name", "count"].map((className) => element("span", { className })));
  const steps = [["up", "↑"], ["down", "↓"], ["remove", "×"]].map(([action, sign]) =>
    element("button", { type: "button", className: "step", textContent: sign, attributes: { "data-action": action } }));
  return element("li", {}, pick, ...steps);
}

function updateItem(item, index, list) {
  const [pick, up, down, remove] = item.children;
  const [dot, name, count] = pick.children;
  const label = `element ${index + 1}`;
  item.dataset.index = index;
  item.classList.toggle("current", index === selection());
  dot.style.setProperty("--ink", inkOf(list[index], index));
  name.textContent = `${index + 1} ${nameOf(list[index])}`;
  pick.setAttribute("aria-pressed", index === selection());
  showCount(count, issuesBelow(`${ELEMENTS}.${index}`));
  up.setAttribute("aria-label", `Move ${label} back`);
  down.setAttribute("aria-label", `Move ${label} to the front`);
  remove.setAttribute("aria-label", `Remove ${label}`);
  up.disabled = index === 0;
  down.disabled = index === list.length - 1;
}

function showCount(count, issues) {
  count.textContent = issues.length ? `⚠ ${issues.length}` : "";
  count.title = issues.map((issue) => issue.message).join("\n");
  count.classList.toggle("mild", issues.every(isMild));
}

function onClick(event) {
  const button = event.target.closest("button");
  if (!button) return;
  const index = Number(button.closest("li").dataset.index);
  const actions = { up: () => reorder(index, -1), down: () => reorder(index, 1), remove: () => remove(index) };
  (actions[button.dataset.action] ?? (() => select(index)))();
}

function remove(index) {
  removeElement(index);
  ($("elements").children[selection()]?.firstElementChild ?? $("add-object")).focus();
}
