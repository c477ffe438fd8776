// The curl command that makes the same picture.
import { $ } from "../dom.js";
import { textOf } from "../form/request.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curlOf(picture) {
  const body = { ...picture.body, n: 1, seed: picture.seed };
  const key = $("key").value ? ' -H "Authorization: Bearer $IDEOSERVE_KEY"' : "";
  const url = new URL(picture.files ? "v1/images/edits" : "v1/images", location.href);
  const data = picture.files ? form(body, picture.files) : `-H 'Content-Type: application/json' -d ${quote(JSON.stringify(body))}`;
  return `curl -sS ${url} -H 'Accept: image/${picture.format}'${key} -o seed-${picture.seed}.${picture.format} ${data}`;
}

/** The files are read from the folder where the command runs. */
function form(body, files) {
  const fields = Object.entries(body).map(([name, value]) => `--form-string ${quote(`${name}=${textOf(value)}`)}`);
  const parts = Object.entries(files).map(([name, file]) => `-F ${quote(`${name}=@"${file.name.replace(/["\\]/g, "\\$&")}"`)}`);
  return [...parts, ...fields].join(" ");
}
