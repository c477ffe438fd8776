// Boxes `[top, left, bottom, right]` in thousandths of the image's sides.

export const MOST = 1000;
export const LEAST = 20; // a smaller drag is a click
const GRID = 10;

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** To the grid, or with `exact` to a whole number; inside the image. */
export const snap = (value, exact) => clamp(exact ? Math.round(value) : Math.round(value / GRID) * GRID, 0, MOST);

/** The box with two opposite corners. */
export const between = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];

/** Moved as far as the image allows. */
export function moved([top, left, bottom, right], down, along) {
  const y = clamp(Math.round(down), -top, MOST - bottom);
  const x = clamp(Math.round(along), -left, MOST - right);
  return [top + y, left + x, bottom + y, right + x];
}

/** With the named edges (of "nesw") moved; a box keeps its least size. */
export function resized([top, left, bottom, right], edges, down, along) {
  const has = (edge) => edges.includes(edge);
  return [
    has("n") ? clamp(top + down, 0, bottom - LEAST) : top,
    has("w") ? clamp(left + along, 0, right - LEAST) : left,
    has("s") ? clamp(bottom + down, top + LEAST, MOST) : bottom,
    has("e") ? clamp(right + along, left + LEAST, MOST) : right,
  ];
}

export const isLarge = ([top, left, bottom, right]) => bottom - top >= LEAST && right - left >= LEAST;
