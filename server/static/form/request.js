// The body of a request, to which each part of the page adds its fields.

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
