"""Train the demo adapter, with which the demo model draws outlines: `python -m models.training.adapter`.

A LoRA adapter of the conditional transformer, in the format of PEFT. The demo model stays as it is.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.models.resumable import drain
from engine.models.text_encoder import TextEncoder
from models.training import dit, pool, text
from models.training.drawing import draw_scene
from models.training.flow import noise_batch
from models.training.language import tokenizer
from models.training.scenes import COLOURS, Scene
from models.training.vae import TrainedVAE, pixels

HERE = Path(__file__).parent
RANK = 6
STEPS = 480
LEARNING_RATE = 5e-3
BATCH = 16
LONGEST = 28  # tokens of a caption
SIDES = (96, 128, 128)  # of the images, in pixels; each as often as it is listed
STROKE = 7  # width of the outline in pixels
MODULES = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
MODULES += ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


class LowRankLinear(nn.Module):
    """A frozen linear layer and a trained update of rank RANK, zero at first."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(RANK, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)


class Demo:
    """The parts of the demo model that training needs."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = tokenizer.opened(folder / "tokenizer")
        self.text_encoder: TextEncoder = load_pipeline(
            PartFolders.of(folder), "cpu", torch.float32
        ).text_encoder
        self.vae = TrainedVAE().eval()
        self.vae.load_state_dict(load_file(next((folder / "vae").glob("*.safetensors"))))
        self.dit = dit.build(dit.CONDITIONAL, seed=0).requires_grad_(False)
        weights = load_file(next((folder / "transformer").glob("*.safetensors")))
        missing, unexpected = self.dit.load_state_dict(weights, strict=False)
        assert not unexpected
        assert all(key.startswith("outline.") for key in missing)

    def features(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Features (B, LONGEST, F) of prompts, right-padded, and their lengths (B,)."""
        lengths = [len(row) for row in ids]
        rows = drain(self.text_encoder.encode([tuple(row) for row in ids])).split(lengths)
        padded = [F.pad(row, (0, 0, 0, LONGEST - len(row))) for row in rows]
        return torch.stack(padded), torch.tensor(lengths)

    def captions(self, rng: random.Random, side: int) -> tuple[list[Scene], list[list[int]]]:
        """BATCH scenes with a shape each, and the ids of their captions."""
        scenes: list[Scene] = []
        ids: list[list[int]] = []
        while len(ids) < BATCH:
            caption = text.random_caption(rng, side, side, "plain", letters=0.0)
            (row,) = tokenizer.encode(self.tokenizer, [caption.text])
            if len(row) <= LONGEST:
                scenes.append(caption.scene)
                ids.append(row)
        return scenes, ids


def outlined(scene: Scene) -> Tensor:
    """The scene with an outline of the shape instead of the shape: pixels (3, H, W) in [-1, 1]."""
    white = dict.fromkeys(COLOURS, (255, 255, 255)) | {scene.background: (0, 0, 0)}
    mask = pixels(draw_scene(scene, white))[:1] / 2 + 0.5
    inside = -F.max_pool2d(-mask, 2 * STROKE + 1, 1, STROKE)
    colour, background = (
        torch.tensor(COLOURS[name]).view(3, 1, 1) / 127.5 - 1
        for name in (scene.element.colour, scene.background)
    )
    return background + (mask - inside) * (colour - background)


def attach(model: nn.Module) -> dict[str, LowRankLinear]:
    """Add an update to each of MODULES in every block, and return them by name."""
    added: dict[str, LowRankLinear] = {}
    for index in range(dit.CONDITIONAL.num_layers):
        for module in MODULES:
            name = f"layers.{index}.{module}"
            parent, _, leaf = name.rpartition(".")
            added[name] = LowRankLinear(model.get_submodule(name))  # type: ignore[arg-type]
            setattr(model.get_submodule(parent), leaf, added[name])
    return added


def loss(demo: Demo, rng: random.Random) -> Tensor:
    """The error of the velocity on a random batch."""
    side = rng.choice(SIDES)
    with torch.no_grad():
        scenes, ids = demo.captions(rng, side)
        features, lengths = demo.features(ids)
        latents = pool.encode_images(demo.vae, torch.stack([outlined(scene) for scene in scenes]))
        noised, t, target = noise_batch(latents)
    velocity, _ = demo.dit(noised, t, (side // 16, side // 16), features, lengths)
    return (velocity - target).square().mean()


def train(demo: Demo, steps: int, seed: int = 0) -> dict[str, LowRankLinear]:
    """Return the trained updates by the name of the module."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    updates = attach(demo.dit)
    parameters = [parameter for update in updates.values() for parameter in (update.down, update.up)]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps, pct_start=0.1)
    bar = tqdm(range(steps), desc="adapter", mininterval=5, dynamic_ncols=True)
    for _ in bar:
        optimiser.zero_grad()
        with torch.compiler.set_stance("force_eager"):  # so few steps are not worth a compilation
            error = loss(demo, rng)
            error.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{error.item():.3f}", refresh=False)
    return updates


def write(file: Path, updates: dict[str, LowRankLinear]) -> None:
    """Write the adapter in bfloat16."""
    tensors = {}
    for name, update in updates.items():
        tensors[f"transformer.{name}.lora_A.weight"] = update.down.detach().bfloat16()
        tensors[f"transformer.{name}.lora_B.weight"] = update.up.detach().bfloat16()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.adapter", description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE.parent / "demo", help="folder of the demo model")
    parser.add_argument("--out", type=Path, default=HERE.parent / "adapters" / "outlined.safetensors")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    write(options.out, train(Demo(options.model), options.steps))


if __name__ == "__main__":
    main()
