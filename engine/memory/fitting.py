"""Bounds sizes and batches by the memory of the device, or refuses the model. Torch-free."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import OptionError
from engine.memory.plan import GB, MemoryPlan
from engine.memory.weights import Keep

# What a refusal proposes, each also with the text encoder in the memory of the host.
_FORMATS: tuple[Keep, ...] = ("stored", "fp8", "nf4")


def bounded(plan: MemoryPlan) -> tuple[ModelConfig, EngineOptions]:
    """The configuration and the options of `plan` with the sizes and batches that fit.

    Raises OptionError, which says what would fit, if no image of the default size does.
    """
    if plan.capacity is None:
        return plan.config, plan.options
    smallest = max(plan.config.default_width, plan.config.default_height)
    if plan.peak(smallest, smallest) > plan.capacity:
        raise OptionError(_refusal(plan, smallest, plan.capacity))
    side = _largest_side(plan, smallest, plan.capacity)
    limits = replace(plan.config.limits, max_size=side)
    return replace(plan.config, limits=limits), _bounded_batches(plan, side, plan.capacity)


def _largest_side(plan: MemoryPlan, smallest: int, capacity: int) -> int:
    """The side of the largest square that fits."""
    limits = plan.config.limits
    sides = range(limits.max_size, smallest, -limits.multiple_of)
    return next((side for side in sides if plan.peak(side, side) <= capacity), smallest)


def _bounded_batches(plan: MemoryPlan, side: int, capacity: int) -> EngineOptions:
    """Batches that fit beside a paused encode and decode of the largest image."""
    work, options, image = plan.work, plan.options, plan.tokens(side, side)
    encode, decode = work.paused_encode(plan.longest_prompt), work.paused_decode(image)
    free = capacity - plan.held(side, side)
    step = (free - work.step_matrix() - encode - decode) // work.step_token(images=2)
    prompts = (free - work.encode_matrix() - decode) // work.encode_token()
    return replace(
        options,
        max_batch_tokens=min(options.max_batch_tokens, max(1, step)),
        max_encode_tokens=min(options.max_encode_tokens, max(1, prompts)),
        max_decode_tokens=min(options.max_decode_tokens, work.decode_limit(free - encode)),
    )


def _refusal(plan: MemoryPlan, side: int, capacity: int) -> str:
    need = f"the model takes {plan.peak(side, side) / GB:.1f} GB for an image of {side}x{side}"
    would_fit = "; ".join(f"{name} ({size / GB:.1f} GB)" for name, size in _fitting(plan, side, capacity))
    return f"memory: {need}, and {capacity / GB:.1f} GB are available; would fit: {would_fit or 'nothing'}"


def _fitting(plan: MemoryPlan, side: int, capacity: int) -> Iterator[tuple[str, int]]:
    """The alternatives that fit, with the bytes that each takes."""
    beside = plan.peak(side, side) - sum(plan.kept.values())
    for keep, is_offloaded in product(_FORMATS, (False, True) if plan.is_cuda else (False,)):
        size = beside + sum(plan.weights(keep, is_offloaded).values())
        if size <= capacity and keep != plan.stored_format:
            yield _name(keep, is_offloaded), size


def _name(keep: Keep, is_offloaded: bool) -> str:
    names = [f"{keep} weights"] if keep != "stored" else []
    return " with ".join([*names, *(["--offload text-encoder"] if is_offloaded else [])])
