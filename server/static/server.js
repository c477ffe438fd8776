// Requests to the server, with the API key of the page.
import { $ } from "./dom.js";

/** `param` is the field that the server names; `status` is the HTTP status. */
export class ServerError extends Error {
  constructor(status, { message, param = null, code = null }) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

/** GET `path`, or POST `body`, as JSON or a form, to it. Returns the parsed response; raises ServerError. */
export async function call(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/** POST `body` and call `handle(event, data)` for each event of the stream. Raises ServerError. */
export async function stream(path, body, signal, handle) {
  const response = await send(path, body, signal);
  await readEvents(response.body, (name, data) => {
    if (name === "error") throw new ServerError(response.status, data.error);
    handle(name, data);
  });
}

async function send(path, body, signal) {
  const isForm = body instanceof FormData; // whose type the browser sets
  const post = { method: "POST", body: isForm ? body : JSON.stringify(body) };
  const type = body === undefined || isForm ? {} : { "Content-Type": "application/json" };
  const key = $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
  const response = await fetch(path, { ...(body === undefined ? {} : post), headers: { ...type, ...key }, signal });
  if (!response.ok) throw new ServerError(response.status, await errorOf(response));
  return response;
}

async function errorOf(response) {
  const answer = await response.json().catch(() => ({}));
  return answer.error ?? { message: `The server responded with status ${response.status}.` };
}

async function readEvents(body, handle) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", name = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const [, field, text] = line.match(/^(event:|data:|: server-timing) (.*)$/) ?? [];
      if (field === "event:") name = text;
      else if (field === "data:") handle(name, JSON.parse(text));
      else if (field) handle("timing", text);
    }
  }
}
