// The curl command that makes the same picture.
import { $ } from "../dom.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curlOf(picture) {
  const body = JSON.stringify({ ...picture.body, n: 1, seed: picture.seed });
  const key = $("key").value ? ' -H "Authorization: Bearer $IDEOSERVE_KEY"' : "";
  const url = new URL("v1/images", location.href);
  return `curl -sS ${url} -H 'Content-Type: application/json' -H 'Accept: image/${picture.format}'${key}` +
    ` -o seed-${picture.seed}.${picture.format} -d ${quote(body)}`;
}
