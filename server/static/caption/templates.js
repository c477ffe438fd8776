// Captions to start from.

const caption = (high_level_description, background, elements, style_description) => ({
  high_level_description,
  ...(style_description ? { style_description } : {}),
  compositional_deconstruction: { background, elements },
});
const object = (bbox, desc, color_palette) => ({ type: "obj", bbox, desc, ...(color_palette ? { color_palette } : {}) });
const text = (bbox, words, desc, color_palette) => ({ type: "text", bbox, text: words, desc, ...(color_palette ? { color_palette } : {}) });

export const TEMPLATES = {
  Poster: caption(
    "A concert poster with a bold headline above a saxophone, in a screen-print style",
    "a deep navy blue paper texture with a warm halftone glow behind the centre",
    [
      text([60, 80, 230, 920], "NIGHT JAZZ", "large condensed sans-serif capitals across the top", ["#FFB000"]),
      object([260, 250, 800, 750], "a golden saxophone seen from the side, its bell to the lower right", ["#FFB000", "#C2410C"]),
      text([840, 150, 920, 850], "FRIDAY 9 PM · BLUE HALL", "small wide-set sans-serif line at the bottom", ["#FFF6DC"]),
    ],
    { aesthetics: "bold, graphic, high contrast", lighting: "flat", medium: "screen print", art_style: "mid-century poster design", color_palette: ["#14234F", "#FFB000", "#C2410C", "#FFF6DC"] },
  ),
  Logo: caption(
    "A minimal logo: a fox head made of triangles above a wordmark, on white",
    "plain white background",
    [
      object([180, 330, 600, 670], "a geometric fox head made of flat triangles, facing forward", ["#E8590C", "#FFFFFF", "#212529"]),
      text([660, 230, 790, 770], "FOXTAIL", "even geometric sans-serif capitals, wide letter spacing", ["#212529"]),
    ],
    { aesthetics: "minimal, balanced, flat", lighting: "none", medium: "vector graphic", art_style: "flat logo design", color_palette: ["#E8590C", "#212529", "#FFFFFF"] },
  ),
  "Product shot": caption(
    "A studio photograph of an amber glass bottle on a stone, with a small label",
    "a seamless beige studio backdrop that fades to a soft shadow at the bottom",
    [
      object([150, 380, 820, 620], "an amber glass bottle with a black dropper cap, upright", ["#8A4B08", "#111111"]),
      text([480, 410, 620, 590], "AURA", "a cream paper label with thin serif capitals", ["#FFF6DC", "#3B2A1A"]),
      object([780, 250, 950, 760], "a flat pale limestone slab under the bottle", ["#D8CFC0"]),
    ],
    { aesthetics: "calm, clean, premium", lighting: "soft window light from the left", photo: "85 mm, f/4, eye level", medium: "photograph", color_palette: ["#8A4B08", "#F0E6D2", "#D8CFC0"] },
  ),
  "Shape (demo model)": caption(
    "a red circle on a white background",
    "plain white background",
    [object([250, 250, 750, 750], "red circle", ["#E11E23"])],
  ),
};
