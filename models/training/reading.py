"""Recognises what an image shows: the background, and the colour, outline and box of each part."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.training.drawing import draw_scene
from models.training.scenes import COLOURS, LETTERS, SHAPES, Element, Scene

SIDE = 40  # size at which outlines are compared
LEAST_CONTRAST = 40.0  # RGB distance from the background, at most 441, above which a pixel counts as drawn


@dataclass(frozen=True)
class Part:
    """A drawn part: nearest palette colour, mask (H, W), box (y0, x0, y1, x1) as fractions of the sides."""

    colour: str
    mask: Tensor
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """The centre (y, x) as fractions of the sides."""
        y0, x0, y1, x1 = self.box
        return (y0 + y1) / 2, (x0 + x1) / 2


@dataclass(frozen=True)
class Reading:
    """The background colour of an image and its parts, largest first."""

    background: str
    parts: tuple[Part, ...]


def to_pixels(image: Image.Image) -> Tensor:
    """The pixels (H, W, 3) as float32 in 0..255."""
    flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).float()


def nearest_colour(rgb: Tensor) -> str:
    """The palette colour nearest to an RGB value (3,)."""
    palette = torch.tensor(list(COLOURS.values())).float()
    return list(COLOURS)[int((palette - rgb).square().sum(1).argmin())]


def background_of(pixels: Tensor) -> Tensor:
    """The background colour (3,): the median along the border."""
    edge = max(1, min(pixels.shape[:2]) // 64)
    strips = (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:])
    return torch.cat([strip.reshape(-1, 3) for strip in strips]).median(0).values


def components(mask: Tensor) -> list[Tensor]:
    """The connected components of a mask (H, W), largest first."""
    labels = torch.arange(1.0, mask.numel() + 1).view_as(mask) * mask
    while True:
        spread = F.max_pool2d(labels[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    values, counts = labels[mask].unique(return_counts=True)
    return [labels == value for value in values[counts.argsort(descending=True)]]


def read_part(pixels: Tensor, mask: Tensor, background: Tensor) -> Part:
    """The part that a mask covers."""
    distance = (pixels - background).norm(dim=-1) * mask
    core = distance >= 0.8 * distance[mask].quantile(0.9)
    rgb = pixels[core].median(0).values
    near = mask & ((pixels - rgb).norm(dim=-1) < (pixels - background).norm(dim=-1))
    near = near if near.any() else mask
    return Part(nearest_colour(rgb), near, box_of(near))


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """The box (y0, x0, y1, x1) around a mask (H, W), as fractions of the sides."""
    ys, xs = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    h, w = mask.shape
    return ys[0].item() / h, xs[0].item() / w, (ys[-1].item() + 1) / h, (xs[-1].item() + 1) / w


def read_image(image: Image.Image, whole: bool = True) -> Reading:
    """Recognise the content of an image; `whole` treats everything drawn as one part."""
    pixels = to_pixels(image)
    background = background_of(pixels)
    mask = (pixels - background).norm(dim=-1) > LEAST_CONTRAST
    least = 0.003 * mask.numel()
    pieces = [mask] if whole else components(mask)
    parts = [read_part(pixels, piece, background) for piece in pieces if piece.sum() > least]
    return Reading(nearest_colour(background), tuple(parts))


def normalised(mask: Tensor) -> Tensor:
    """The mask cropped to its box, scaled to fit a SIDE x SIDE square, centred and slightly blurred."""
    ys, xs = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    cut = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].float()
    h, w = cut.shape
    size = max(1, round(SIDE * h / max(h, w))), max(1, round(SIDE * w / max(h, w)))
    scaled = F.interpolate(cut[None, None], size, mode="bilinear", antialias=True)
    top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    square = F.pad(scaled, (left, SIDE - size[1] - left, top, SIDE - size[0] - top))
    return F.avg_pool2d(F.pad(square, (2, 2, 2, 2)), 5, 1)[0, 0]


@lru_cache(maxsize=2)
def templates(kind: str) -> dict[str, Tensor]:
    """The normalised outline of each shape or letter."""
    made = {}
    for name in LETTERS if kind == "letter" else SHAPES:
        scene = Scene(128, 128, "black", Element(kind, name, "white", 64, 64, 96))
        made[name] = normalised(to_pixels(draw_scene(scene))[..., 0] > 127)
    return made


def likeness(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two soft masks."""
    return float(torch.minimum(a, b).sum() / torch.maximum(a, b).sum())


def read_name(part: Part, kind: str) -> str:
    """The shape or letter whose outline is most similar to the part's."""
    own = normalised(part.mask)
    return max(templates(kind), key=lambda name: likeness(own, templates(kind)[name]))


def filled(mask: Tensor) -> Tensor:
    """The mask (H, W) with its holes: all that the border is not connected to."""
    outside = F.pad((~mask).float(), (1, 1, 1, 1), value=1.0)
    reached = torch.zeros_like(outside)
    reached[0] = 1.0
    while True:
        spread = F.max_pool2d(reached[None, None], 3, 1, 1)[0, 0] * outside
        if torch.equal(spread, reached):
            return reached[1:-1, 1:-1] == 0
        reached = spread
