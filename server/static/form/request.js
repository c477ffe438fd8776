// The body of a request, to which each part of the page adds its fields; with files, as a form.

const parts = [];

/** The user's input is wrong: `param` is the field of the request. */
export class InputError extends Error {
  constructor(message, param) {
    super(message);
    this.param = param;
  }
}

/** `add(body)` sets fields of the body. It may raise InputError. */
export function contribute(add) {
  parts.push(add);
}

/** Raises InputError. */
export function requestBody() {
  const body = {};
  for (const add of parts) add(body);
  return body;
}

/** The text of a field in a form. */
export const textOf = (value) => (typeof value === "string" ? value : JSON.stringify(value));

export function formOf(body, files) {
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) form.append(name, textOf(value));
  for (const [name, file] of Object.entries(files)) form.append(name, file, file.name);
  return form;
}
