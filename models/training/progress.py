"""A progress bar for each stage with the time left for all of them, and files a killed run goes on from."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

# minutes that follow a stage on two free cores
MINUTES_AFTER = {"text": 76, "vae": 76, "pool": 72, "dit": 0}


class Progress:
    """Counts the steps of one stage; silent where it is not shown."""

    def __init__(self, stage: str, total: int, done: int = 0, shown: bool = True) -> None:
        self.after = MINUTES_AFTER[stage] * 60
        self.done = done
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=stage,
            position=1 if stage == "text" else 0,  # beside the VAE's bar
            disable=not shown,
            mininterval=5,
            smoothing=0.05,
            dynamic_ncols=True,
        )

    def step(self, **figures: float) -> None:
        """One step done; figures are shown beside the bar."""
        shown = {name: f"{value:.3f}" for name, value in figures.items()}
        self.bar.set_postfix({"all stages left": self.left()} | shown, refresh=False)
        self.bar.update(1)

    def left(self) -> str:
        """Time to the end of the last stage."""
        if self.bar.disable:
            return ""
        elapsed, done = self.bar.format_dict["elapsed"], self.bar.n - self.bar.initial
        here = elapsed / done * (self.bar.total - self.bar.n) if done else 0
        return str(timedelta(seconds=round(here + self.after)))

    def close(self) -> None:
        self.bar.close()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old or the new one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None before the first."""
    return torch.load(path, weights_only=True) if path.exists() else None
