"""Compiles training functions if the machine has a C++ compiler."""

import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The compiled function, or the function itself without a C++ compiler."""
    torch._dynamo.config.recompile_limit = 64
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return function
    return cast(F, torch.compile(function))
