// Shorthands for the document.

export const $ = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const { attributes = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Give `parent` exactly `count` children. Those that exist are kept, so that focus and pointers stay. */
export function reconcile(parent, count, create, update) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(create(parent.children.length));
  [...parent.children].forEach(update);
}

/** Set the value of a field, unless that would move the cursor of its user. */
export function setValue(field, value) {
  if (field.value !== value) field.value = value;
}

export function debounce(milliseconds, action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

export function download(url, name) {
  element("a", { href: url, download: name }).click();
}
