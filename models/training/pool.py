"""Precomputed training data of the DiT, in shards on disk: token ids, latents and outlines."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models.training import progress, text
from models.training.drawing import draw_scene
from models.training.language import tokenizer
from models.training.scenes import COLOURS, Scene
from models.training.vae import TrainedVAE, pixels

SHARD = 1000
ONE_COLOUR = dict.fromkeys(COLOURS, (255, 255, 255))


@dataclass(frozen=True)
class Bucket:
    """Images of one token count with captions up to one length: one compiled shape per bucket."""

    name: str
    form: str
    contents: text.Contents
    sizes: tuple[tuple[int, int], ...]  # width, height in pixels
    longest: int  # caption, tokens
    count: int  # samples a batch and process
    shards: int


WITH_WORDS = {"single": 0.6, "word": 0.4}
BUCKETS = (
    Bucket("tiny", "plain", {"single": 1.0}, ((64, 64),), 32, 48, 4),
    Bucket("small", "plain", WITH_WORDS, ((96, 96),), 32, 32, 12),
    Bucket("small caption", "structured", WITH_WORDS, ((96, 96),), 74, 18, 8),
    Bucket("short", "plain", text.MIXED, ((128, 128),), 32, 22, 20),
    Bucket("caption", "structured", text.BOXED, ((128, 128),), 74, 15, 10),
    Bucket("pair caption", "structured", text.PAIRS, ((128, 128),), 106, 12, 8),
    Bucket("oblong", "plain", WITH_WORDS, ((128, 96), (96, 128)), 32, 26, 2),
    Bucket("oblong caption", "structured", WITH_WORDS, ((128, 96), (96, 128)), 74, 16, 2),
)
LETTERS = 0.7  # fraction of letters: there are more of them than shapes, and they are harder


def patchify(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) to tokens (B, h / 2 * w / 2, 4C), channels ordered by row, column and channel."""
    batch, channels, h, w = latents.shape
    patches = latents.view(batch, channels, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, h // 2 * (w // 2), 4 * channels)


def unpatchify(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, N, 4C) to latents (B, C, h, w): the inverse of `patchify`."""
    h, w = grid
    channels = tokens.shape[-1] // 4
    patches = tokens.view(-1, h, w, 2, 2, channels).permute(0, 5, 1, 3, 2, 4)
    return patches.reshape(-1, channels, 2 * h, 2 * w)


def outline(scene: Scene) -> Tensor:
    """The drawn fraction of each cell of 4 x 4 pixels, of the element and then of the other: uint8 (N, 32).

    Tokens are in row-major order.
    """
    drawn = [cells_of(replace(scene, element=each, other=None)) for each in scene.elements]
    if not scene.other:
        drawn.append(torch.zeros_like(drawn[0]))
    return torch.cat(drawn, dim=-1)


def cells_of(scene: Scene) -> Tensor:
    """The drawn fraction of the cells of one element: uint8 (N, 16)."""
    drawn = draw_scene(scene, ONE_COLOUR | {scene.background: (0, 0, 0)}).convert("L")
    cells = drawn.resize((scene.width // 4, scene.height // 4), Image.Resampling.BOX)
    flat = torch.frombuffer(bytearray(cells.tobytes()), dtype=torch.uint8)
    grid = flat.view(scene.height // 16, 4, scene.width // 16, 4)
    return grid.transpose(1, 2).reshape(-1, 16)


def draw_captions(
    rng: random.Random, bucket: Bucket, number: int, work: Path
) -> tuple[list[Scene], list[list[int]]]:
    """SHARD scenes of one size whose captions fit the bucket, and the token ids of the captions."""
    tok = tokenizer.opened(work / "tokenizer")
    size = bucket.sizes[number % len(bucket.sizes)]
    scenes: list[Scene] = []
    ids: list[list[int]] = []
    while len(ids) < SHARD:
        more = [text.random_caption(rng, *size, bucket.form, LETTERS, bucket.contents) for _ in range(SHARD)]
        for caption, row in zip(more, tokenizer.encode(tok, [c.text for c in more]), strict=True):
            if len(row) <= bucket.longest and len(ids) < SHARD:
                scenes.append(caption.scene)
                ids.append(row)
    return scenes, ids


@torch.no_grad()
def encode_images(model: TrainedVAE, images: Tensor) -> Tensor:
    """Encode pixels (B, 3, H, W) in [-1, 1] to normalised latent tokens (B, N, 4C)."""
    tokens = patchify(model.encode(images.contiguous(memory_format=torch.channels_last)))
    assert model.bn.running_mean is not None
    assert model.bn.running_var is not None
    return (tokens - model.bn.running_mean) / (model.bn.running_var + model.bn.eps).sqrt()


def make_shard(model: TrainedVAE, bucket: Bucket, number: int, work: Path) -> dict[str, Tensor]:
    """Compute one shard: grid, ids, lengths, latents (bfloat16), outlines (uint8)."""
    rng = random.Random(f"pool {bucket.name} {number}")
    scenes, rows = draw_captions(rng, bucket, number, work)
    ids, lengths = text.pad(rows, bucket.longest)
    images = [pixels(draw_scene(scene)) for scene in scenes]
    latents = torch.cat([encode_images(model, torch.stack(images[i : i + 20])) for i in range(0, SHARD, 20)])
    return {
        "grid": torch.tensor([scenes[0].height // 16, scenes[0].width // 16]),
        "ids": ids.short(),
        "lengths": lengths.short(),
        "latents": latents.bfloat16(),
        "outlines": torch.stack([outline(scene) for scene in scenes]),
    }


def load_vae(work: Path) -> TrainedVAE:
    """The trained VAE with its weights rounded as the checkpoint stores them."""
    model = TrainedVAE()
    state = progress.load(work / "vae.pt")
    assert state is not None
    model.load_state_dict(
        {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in state["model"].items()}
    )
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def shard_path(work: Path, bucket: Bucket, number: int) -> Path:
    return work / "pool" / f"{bucket.name.replace(' ', '-')}-{number:03d}.pt"


def shard_paths(work: Path) -> list[Path]:
    """The files of the whole pool."""
    return [shard_path(work, bucket, number) for bucket in BUCKETS for number in range(bucket.shards)]


def fit(work: Path, rank: int = 0, world: int = 1, shown: bool = True) -> None:
    """Write this process's share of the missing shards."""
    (work / "pool").mkdir(exist_ok=True)
    wanted = [(bucket, number) for bucket in BUCKETS for number in range(bucket.shards)][rank::world]
    missing = [(b, n) for b, n in wanted if not shard_path(work, b, n).exists()]
    model = load_vae(work) if missing else None
    bar = progress.Progress("pool", len(wanted), len(wanted) - len(missing), shown)
    for bucket, number in missing:
        assert model is not None
        progress.save(shard_path(work, bucket, number), make_shard(model, bucket, number, work))
        bar.step()
    bar.close()
