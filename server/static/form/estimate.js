// Predicts the time of the request that the form describes.
import { subscribe } from "../caption/store.js";
import { $, debounce } from "../dom.js";
import { hasSource } from "../edit/source.js";
import { call } from "../server.js";
import { requestBody } from "./request.js";

const PAUSE = 400; // milliseconds
let running = new AbortController();

export function startEstimate() {
  const later = debounce(PAUSE, estimate);
  $("form").addEventListener("input", later);
  $("form").addEventListener("change", later);
  subscribe(later);
}

async function estimate() {
  running.abort();
  running = new AbortController();
  $("estimate").textContent = await predict(running.signal).catch(() => "");
}

/** Empty until the form describes a request. */
async function predict(signal) {
  const { seconds, ahead_seconds: ahead } = await call("v1/images/estimate", requestBody(), signal);
  const wait = ahead >= 0.05 ? `, ${ahead.toFixed(1)} s of it waiting` : ""; // short: one line on a phone
  return `Takes ${hasSource() ? "up to" : "about"} ${seconds.toFixed(1)} s${wait}.`;
}
