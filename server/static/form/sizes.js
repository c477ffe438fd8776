// The sizes to choose from: common aspect ratios at the default area, within the limits of the model.

const SHAPES = [[1, 1], [4, 3], [3, 4], [16, 9], [9, 16], [3, 2], [2, 3]];
const TOLERANCE = 0.05; // of a ratio, for the rounding of the sides

/** Pairs of a size `WxH` and its label. */
export function sizes(model) {
  const { min_size: low, max_size: high, multiple_of: step, max_aspect_ratio: widest } = model.limits;
  const [width, height] = model.default_size.split("x").map(Number);
  const fit = (side) => Math.min(high, Math.max(low, Math.round(side / step) * step));
  const found = new Map([[model.default_size, `${model.default_size}`]]);
  const offer = (x, y, label) => {
    const size = `${x}x${y}`;
    if (Math.max(x, y) <= widest * Math.min(x, y) && !found.has(size)) found.set(size, label ? `${size} (${label})` : size);
  };
  for (const [w, h] of SHAPES) {
    const root = Math.sqrt(width * height / (w * h));
    const x = fit(w * root), y = fit(h * root);
    offer(x, y, shapeOf(x, y));
  }
  offer(fit(2 * width), fit(2 * height), "large");
  return [...found];
}

/** The common aspect ratio of a size, which the limits may have made another than was asked for; "" without one. */
function shapeOf(x, y) {
  const off = ([w, h]) => Math.abs(Math.log(x * h / (y * w)));
  const nearest = SHAPES.reduce((best, shape) => (off(shape) < off(best) ? shape : best));
  return off(nearest) < TOLERANCE ? nearest.join(":") : "";
}

/** The size of an image if the model allows it, else its shape at the default area. */
export function ownSize({ limits, default_size: area }, { width, height }) {
  const { min_size: low, max_size: high, multiple_of: step, max_aspect_ratio: widest } = limits;
  const fit = (side) => Math.min(high, Math.max(low, Math.round(side / step) * step));
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  if (fit(width) === width && fit(height) === height && long <= widest * short) return `${width}x${height}`;
  const ratio = Math.min(long / short, widest);
  const [x, y] = area.split("x").map(Number);
  const less = fit(Math.sqrt(x * y / ratio)), more = Math.min(fit(less * ratio), Math.floor(less * widest / step) * step);
  return width >= height ? `${more}x${less}` : `${less}x${more}`;
}
