"""Progress bars with the time left for all stages, and the files that a stopped run resumes from."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

# stage -> minutes of the stages after it, on two idle cores
MINUTES_AFTER = {"text": 86, "vae": 86, "pool": 80, "dit": 0}


class Progress:
    """The progress bar of one stage; silent if not `shown`."""

    def __init__(self, stage: str, total: int, done: int = 0, shown: bool = True) -> None:
        self.after = MINUTES_AFTER[stage] * 60
        self.done = done
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=stage,
            position=1 if stage == "text" else 0,  # below the bar of the VAE, which trains at the same time
            disable=not shown,
            mininterval=5,
            smoothing=0.05,
            dynamic_ncols=True,
        )

    def step(self, **figures: float) -> None:
        """Count one step and show the figures next to the bar."""
        shown = {name: f"{value:.3f}" for name, value in figures.items()}
        self.bar.set_postfix({"all stages left": self.left()} | shown, refresh=False)
        self.bar.update(1)

    def left(self) -> str:
        """Estimated time to the end of the last stage."""
        if self.bar.disable:
            return ""
        elapsed, done = self.bar.format_dict["elapsed"], self.bar.n - self.bar.initial
        here = elapsed / done * (self.bar.total - self.bar.n) if done else 0
        return str(timedelta(seconds=round(here + self.after)))

    def close(self) -> None:
        self.bar.close()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state atomically: a kill at any moment leaves the old one or the new one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any] | None:
    """The state, or None if there is none yet."""
    return torch.load(path, weights_only=True) if path.exists() else None
