"""A candidate: one implementation of an operation. `engine.tuning` measures which one is the fastest."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether a candidate computes its operation: device type ("cpu", "cuda") and dtype."""

    device: str
    dtype: torch.dtype


def everywhere(_: Machine) -> bool:
    return True


def on_cpu(machine: Machine) -> bool:
    return machine.device == "cpu"


def on_cuda_with_triton(machine: Machine) -> bool:
    """Torch for CUDA brings Triton on Linux."""
    return machine.device == "cuda" and importlib.util.find_spec("triton") is not None


@dataclass(frozen=True, slots=True)
class Candidate:
    """`run` replaces a layer by its form, or computes the operation: each module says which.

    `is_correct` tells whether it runs and is correct on a machine, never whether it is fast there.
    """

    name: str
    run: Callable[..., Any]
    is_correct: Callable[[Machine], bool] = everywhere
