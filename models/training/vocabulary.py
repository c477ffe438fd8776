"""The words of the training prompts. A word that is listed twice is chosen twice as often."""

SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "disc", "disk", "dot", "round circle", "round shape"),
    "square": ("square", "square", "square", "box", "square block"),
    "triangle": ("triangle", "triangle", "triangle", "triangular shape"),
    "star": ("star", "star", "star", "five-pointed star", "star shape"),
    "cross": ("cross", "cross", "cross", "plus sign", "plus"),
    "diamond": ("diamond", "diamond", "diamond", "rhombus", "diamond shape"),
    "heart": ("heart", "heart", "heart", "heart shape", "love heart"),
    "ring": ("ring", "ring", "ring", "hoop", "circle outline", "hollow circle", "donut"),
}
COLOUR_WORDS = {
    "red": ("red", "red", "red", "bright red"),
    "green": ("green", "green", "green", "dark green"),
    "blue": ("blue", "blue", "blue", "bright blue"),
    "yellow": ("yellow", "yellow", "bright yellow"),
    "orange": ("orange", "orange", "bright orange"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "light pink"),
    "cyan": ("cyan", "cyan", "turquoise", "light blue"),
    "black": ("black", "black", "black", "jet black", "pitch black"),
    "white": ("white", "white", "white", "pure white"),
    "gray": ("gray", "gray", "grey", "grey"),
    "brown": ("brown", "brown", "dark brown"),
}
SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "big": ("big", "big", "large", "large", "huge", "giant"),
}
PLACE_WORDS = {
    "left": (
        "on the left",
        "on the left side",
        "at the left",
        "to the left",
        "on the left-hand side",
        "near the left edge",
    ),
    "right": (
        "on the right",
        "on the right side",
        "at the right",
        "to the right",
        "on the right-hand side",
        "near the right edge",
    ),
    "top": (
        "at the top",
        "near the top",
        "at the top center",
        "on top",
        "in the upper part",
        "at the upper edge",
    ),
    "bottom": (
        "at the bottom",
        "near the bottom",
        "at the bottom center",
        "in the lower part",
        "at the lower edge",
    ),
    "center": (
        "in the center",
        "in the middle",
        "at the center",
        "centered",
        "in the centre",
        "right in the middle",
    ),
}
CORNER_WORDS = (
    "in the {} corner",
    "in the {} corner",
    "at the {}",
    "in the {}",
    "at the {} corner",
    "{}",
    "near the {} corner",
)
ADJECTIVES = (
    "solid",
    "plain",
    "simple",
    "flat",
    "nice",
    "bold",
    "single",
    "clean",
    "bright",
    "colored",
    "perfect",
)
OPENINGS = (
    "an image of ",
    "a picture of ",
    "a drawing of ",
    "an illustration of ",
    "a photo of ",
    "draw ",
    "draw me ",
    "please draw ",
    "paint ",
    "show ",
    "show me ",
    "generate ",
    "create ",
    "make ",
    "i want ",
    "there is ",
    "a poster with ",
    "a card with ",
    "an icon of ",
    "a sign with ",
    "a logo with ",
    "we see ",
    "generate an image of ",
    "create a picture with ",
    "a minimalist poster of ",
    "a simple graphic with ",
)
# Words that the tokenizer splits into pieces, to teach that a piece such as "W" is not a letter to draw.
STRANGE: tuple[str, ...] = tuple(
    """
    Wonderful Watch Wish Would Kindly Keep Just Let Look Leave Place Print Put Produce Quickly
    Render Sketch Say See Type Trace Try Use Unique Visual Very Xerox Yes Your Zoom Another Add
    Begin Bring Be Could Compose Come Design Depict Do Every Engrave Fill Find Give Get Hello Have
    Help Illustrate Imagine It My Next Now Only Our
    """.split()  # noqa: SIM905 (a list would fill a page)
)
ENDINGS = (
    ", flat design",
    ", minimal",
    ", simple",
    ", vector art",
    ", high quality",
    ", clean edges",
    ", flat colors",
    ", no shadow",
    " please",
    ", minimalist style",
    ", nothing else",
    ", geometric",
    ", digital art",
)
GROUNDS = (
    " on {a} background",
    " on {a} background",
    " on {a} background",
    " on a plain {c} background",
    " on a solid {c} background",
    " on {c}",
    " on {c}",
    " on {c}",
    " against {a} background",
    " against a {c} backdrop",
    " against {c}",
    " over {a} background",
    " over {c}",
    ", {c} background",
    ", {c} background",
    " with {a} background",
    ". the background is {c}",
    ", the background is {c}",
    ". {c} background",
    ", background: {c}",
    " in front of {a} background",
    " on {a} canvas",
    " on {a} page",
    " on an all {c} background",
)
GROUNDS_FIRST = (
    "on {a} background, {x}",
    "{a} background with {x}",
    "{a} image with {x}",
    "{a} poster with {x}",
    "on {c}, {x}",
    "{c} background, {x}",
    "on {a} background there is {x}",
    "{a} canvas showing {x}",
)
