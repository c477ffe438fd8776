"""Draws scenes without fonts, from polygons and strokes, so that all machines draw the same pixels."""

import math

from PIL import Image, ImageDraw

from models.training.scenes import COLOURS, RGB, Element, Scene, letter_aspect

Point = tuple[float, float]
OVERSAMPLE = 4
STROKE = 0.21  # stroke width as a fraction of a letter's height


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points on an ellipse from angle start to end in degrees; 0 is right, 90 is down."""
    steps = 24
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


_P = [(0.0, 1.0), (0.0, 0.0), (0.55, 0.0), *arc(0.55, 0.27, 0.45, 0.27, -90, 90), (0.0, 0.54)]
_O = arc(0.5, 0.5, 0.5, 0.5, 0, 360)
# letter -> centre lines of its strokes in a unit box, y down
STROKES: dict[str, list[list[Point]]] = {
    "A": [[(0, 1), (0.5, 0), (1, 1)], [(0.2, 0.65), (0.8, 0.65)]],
    "B": [
        [(0, 0.48), (0, 0), (0.58, 0), *arc(0.58, 0.24, 0.34, 0.24, -90, 90), (0, 0.48)],
        [(0, 0.48), (0.6, 0.48), *arc(0.6, 0.74, 0.4, 0.26, -90, 90), (0, 1), (0, 0.48)],
    ],
    "C": [arc(0.5, 0.5, 0.5, 0.5, -50, -310)],
    "D": [[(0, 0), (0.4, 0), *arc(0.4, 0.5, 0.6, 0.5, -90, 90), (0, 1), (0, 0)]],
    "E": [[(1, 0), (0, 0), (0, 1), (1, 1)], [(0, 0.5), (0.8, 0.5)]],
    "F": [[(1, 0), (0, 0), (0, 1)], [(0, 0.5), (0.8, 0.5)]],
    "G": [[*arc(0.5, 0.5, 0.5, 0.5, -50, -360), (0.55, 0.5)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "I": [[(0.5, 0), (0.5, 1)], [(0.1, 0), (0.9, 0)], [(0.1, 1), (0.9, 1)]],
    "J": [[(0.85, 0), *arc(0.45, 0.65, 0.4, 0.35, 0, 180)]],
    "K": [[(0, 0), (0, 1)], [(0.95, 0), (0, 0.6)], [(0.3, 0.42), (1, 1)]],
    "L": [[(0, 0), (0, 1), (1, 1)]],
    "M": [[(0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)]],
    "N": [[(0, 1), (0, 0), (1, 1), (1, 0)]],
    "O": [_O],
    "P": [_P],
    "Q": [_O, [(0.6, 0.65), (1, 1)]],
    "R": [_P, [(0.45, 0.54), (1, 1)]],
    "S": [[*arc(0.5, 0.25, 0.46, 0.25, -30, -270), *arc(0.5, 0.75, 0.5, 0.25, -90, 155)]],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1)]],
    "U": [[(0, 0), *arc(0.5, 0.6, 0.5, 0.4, 180, 0), (1, 0)]],
    "V": [[(0, 0), (0.5, 1), (1, 0)]],
    "W": [[(0, 0), (0.25, 1), (0.5, 0.35), (0.75, 1), (1, 0)]],
    "X": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
    "Y": [[(0, 0), (0.5, 0.5), (1, 0)], [(0.5, 0.5), (0.5, 1)]],
    "Z": [[(0, 0), (1, 0), (0, 1), (1, 1)]],
}


def star_points() -> list[Point]:
    """A five-pointed star that fills [-1, 1] on both axes."""
    points = []
    for i in range(10):
        angle, r = -math.pi / 2 + i * math.pi / 5, 1.0 if i % 2 == 0 else 0.44
        points.append((r * math.cos(angle) / 0.951, (r * math.sin(angle) + 0.0955) / 0.9045))
    return points


def heart_points() -> list[Point]:
    """A heart that fills [-1, 1] on both axes."""
    points = []
    for i in range(60):
        t = math.tau * i / 60
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(y + 2.5) / 14.5))
    return points


# shape -> polygons in [-1, 1] on both axes; circle and ring are drawn as ellipses
POLYGONS: dict[str, list[list[Point]]] = {
    "square": [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "triangle": [[(0, -1), (1, 1), (-1, 1)]],
    "diamond": [[(0, -1), (0.78, 0), (0, 1), (-0.78, 0)]],
    "cross": [
        [(-1, -0.34), (1, -0.34), (1, 0.34), (-1, 0.34)],
        [(-0.34, -1), (0.34, -1), (0.34, 1), (-0.34, 1)],
    ],
    "star": [star_points()],
    "heart": [heart_points()],
}


def draw_shape(draw: ImageDraw.ImageDraw, name: str, cx: float, cy: float, r: float, rgb: RGB) -> None:
    """Draw a shape with half side r."""
    if name == "circle":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=rgb)
    elif name == "ring":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), outline=rgb, width=round(r * 0.38))
    for polygon in POLYGONS.get(name, []):
        draw.polygon([(cx + x * r, cy + y * r) for x, y in polygon], fill=rgb)


def draw_letter(draw: ImageDraw.ImageDraw, name: str, cx: float, cy: float, side: float, rgb: RGB) -> None:
    """Draw a letter of height `side` from thick lines with round joints."""
    pen = side * STROKE
    h, w = side - pen, side * letter_aspect(name) - pen
    for stroke in STROKES[name]:
        points = [(cx + (x - 0.5) * w, cy + (y - 0.5) * h) for x, y in stroke]
        draw.line(points, fill=rgb, width=round(pen))
        for x, y in points:
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=rgb)


def draw_element(draw: ImageDraw.ImageDraw, element: Element, rgb: RGB) -> None:
    """Draw an element at the oversampled scale."""
    cx, cy, side = (v * OVERSAMPLE for v in (element.cx, element.cy, element.side))
    if element.kind == "letter":
        draw_letter(draw, element.name, cx, cy, side, rgb)
    elif element.kind == "word":
        first = cx - (len(element.name) - 1) * side / 2
        for index, letter in enumerate(element.name):
            draw_letter(draw, letter, first + index * side, cy, side, rgb)
    else:
        draw_shape(draw, element.name, cx, cy, side / 2, rgb)


def draw_scene(scene: Scene, palette: dict[str, RGB] = COLOURS) -> Image.Image:
    """Draw the scene as an antialiased RGB image."""
    size = scene.width * OVERSAMPLE, scene.height * OVERSAMPLE
    image = Image.new("RGB", size, palette[scene.background])
    draw = ImageDraw.Draw(image)
    for element in scene.behind:
        draw_element(draw, element, palette[element.colour])
    return image.reduce(OVERSAMPLE)
