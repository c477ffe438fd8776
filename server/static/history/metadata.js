// The generation parameters that the server writes into PNG files.

const SIGNATURE = "\x89PNG\r\n\x1a\n";
const KEYWORD = "ideoserve";

/** The parameters in a PNG file; null if it has none. */
export function readMetadata(buffer) {
  const bytes = new Uint8Array(buffer), view = new DataView(buffer);
  if (latin(bytes.subarray(0, 8)) !== SIGNATURE) return null;
  for (let at = 8; at + 12 <= bytes.length; at += view.getUint32(at) + 12) {
    const data = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    if (latin(bytes.subarray(at + 4, at + 8)) === "iTXt" && latin(data.subarray(0, KEYWORD.length + 1)) === `${KEYWORD}\0`) return parse(data);
  }
  return null;
}

/** After the keyword: two bytes about compression, then language, translated keyword and text, split by zeros. */
function parse(data) {
  const rest = data.subarray(KEYWORD.length + 3);
  const language = rest.indexOf(0), keyword = rest.indexOf(0, language + 1);
  try {
    return JSON.parse(new TextDecoder().decode(rest.subarray(keyword + 1)));
  } catch {
    return null;
  }
}

const latin = (bytes) => String.fromCharCode(...bytes);
