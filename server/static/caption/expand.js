// Expands the text prompt into a caption, whose boxes then lie on the canvas.
import { $ } from "../dom.js";
import { clearErrors, showError } from "../form/errors.js";
import { useInput } from "../form/input.js";
import { requestBody } from "../form/request.js";
import { say } from "../result/stage.js";
import { call } from "../server.js";
import { openCaption } from "./files.js";

export function startExpansion() {
  $("expand").addEventListener("click", expand);
}

async function expand() {
  clearErrors();
  $("expand").disabled = true;
  say("Expanding the prompt…");
  try {
    const answer = await call("v1/captions/expand", requestBody());
    openCaption(answer.caption);
    useInput("json_prompt");
    say("The prompt was expanded. Edit the caption, then generate.");
  } catch (error) {
    showError(error.param, error.message);
    say(error.message, true);
  }
  $("expand").disabled = false;
}
