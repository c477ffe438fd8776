"""Makes training functions faster where the machine has a C++ compiler; the mathematics is the same."""

import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function compiled, or as it is without a compiler."""
    torch._dynamo.config.recompile_limit = 64
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return function
    return cast(F, torch.compile(function))
