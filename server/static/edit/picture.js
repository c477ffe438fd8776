// An image file as the page shows it, and its place among the margins that extend it.

const MOST = 1024; // pixels of the longer side, as shown

/** Raises an error if this browser cannot decode the file. */
export async function decode(file) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const scale = Math.min(1, MOST / Math.max(width, height));
  const shown = canvasOf(width * scale, height * scale);
  shown.getContext("2d").drawImage(bitmap, 0, 0, shown.width, shown.height);
  bitmap.close();
  return { file, width, height, shown };
}

export function canvasOf(width, height) {
  return resize(document.createElement("canvas"), width, height);
}

/** Empties the canvas. */
export function resize(canvas, width, height) {
  return Object.assign(canvas, { width: Math.max(1, Math.round(width)), height: Math.max(1, Math.round(height)) });
}

/** Of a canvas for the picture with its margins: its sides, and the place `x`, `y`, `w`, `h` of the picture. */
export function layout({ width, height }, { left = 0, top = 0, right = 0, bottom = 0 } = {}) {
  const across = left + width + right, down = top + height + bottom;
  const scale = Math.min(1, MOST / Math.max(across, down));
  return { width: across * scale, height: down * scale, x: left * scale, y: top * scale, w: width * scale, h: height * scale };
}

/** Whether any pixel is transparent, which the server paints. */
export function isTransparent({ shown }) {
  const { data } = shown.getContext("2d").getImageData(0, 0, shown.width, shown.height);
  return data.some((value, index) => index % 4 === 3 && value < 255);
}
