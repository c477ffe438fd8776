"""Bounds sizes and batches by the memory of the device, or refuses the model. Torch-free."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import OptionError
from engine.memory.plan import GB, MemoryPlan
from engine.precision import PrecisionOptions


def bounded(plan: MemoryPlan) -> tuple[ModelConfig, EngineOptions]:
    """The configuration and the options of `plan` with the sizes and batches that fit.

    Weights that may be widened ("auto") may be so only if that bounds nothing more. Raises OptionError, which
    says what would fit, if no image of the default size does.
    """
    if plan.capacity is None:
        return plan.config, plan.options
    if _smallest_peak(plan) > plan.capacity:
        raise OptionError(_refusal(plan, plan.capacity))
    bounds = _bounds(plan, plan.capacity)
    if plan.options.precision.weights != "auto" or _is_bounded_alike(plan, bounds):
        return bounds
    return bounds[0], replace(bounds[1], precision=plan.with_weights("stored").options.precision)


def _is_bounded_alike(plan: MemoryPlan, bounds: tuple[ModelConfig, EngineOptions]) -> bool:
    """Whether the bounds would be the same with widened weights."""
    widened = plan.with_weights("widened")
    if plan.capacity is None or _smallest_peak(widened) > plan.capacity:
        return False
    config, options = _bounds(widened, plan.capacity)
    return bounds == (config, replace(options, precision=plan.options.precision))


def _smallest_peak(plan: MemoryPlan) -> int:
    """Of images of the default size, as few as fill a batch."""
    side = _default_side(plan)
    return _few_images(plan).peak(side, side)


def _default_side(plan: MemoryPlan) -> int:
    return max(plan.config.default_width, plan.config.default_height)


def _few_images(plan: MemoryPlan) -> MemoryPlan:
    """The plan with no more images in progress than fill a batch."""
    options = plan.options
    return replace(
        plan, options=replace(options, max_running=min(options.max_running, options.max_batch_size))
    )


def _bounds(plan: MemoryPlan, capacity: int) -> tuple[ModelConfig, EngineOptions]:
    """Images in progress are limited before the size is."""
    few = _few_images(plan)
    side = _largest_side(few, capacity)
    limits = replace(plan.config.limits, max_size=side)
    fitting = plan if plan.peak(side, side) <= capacity else few
    return replace(plan.config, limits=limits), _bounded_batches(fitting, side, capacity)


def _largest_side(plan: MemoryPlan, capacity: int) -> int:
    """The side of the largest square that fits."""
    limits, smallest = plan.config.limits, _default_side(plan)
    sides = range(limits.max_size, smallest, -limits.multiple_of)
    return next((side for side in sides if plan.peak(side, side) <= capacity), smallest)


def _bounded_batches(plan: MemoryPlan, side: int, capacity: int) -> EngineOptions:
    """Batches that fit beside a paused encode and decode of the largest image."""
    work, options, image = plan.work, plan.options, plan.tokens(side, side)
    encode, decode = plan.paused_encode(image), work.paused_decode(image)
    free = capacity - plan.held(side, side)
    return replace(
        options,
        max_batch_tokens=min(options.max_batch_tokens, max(1, work.step_limit(free - encode - decode))),
        max_encode_tokens=min(options.max_encode_tokens, max(1, work.encode_limit(free - decode))),
        max_decode_tokens=min(options.max_decode_tokens, work.decode_limit(free - encode)),
    )


def _refusal(plan: MemoryPlan, capacity: int) -> str:
    side = _default_side(plan)
    need = f"the model takes {_in_gb(_smallest_peak(plan))} for an image of {side}x{side}"
    would_fit = "; ".join(f"{name} ({_in_gb(size)})" for name, size in _fitting(plan, capacity))
    return f"memory: {need}, and {_in_gb(capacity)} are available; would fit: {would_fit or 'nothing'}"


def _in_gb(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / GB:.2f} GB"


def _fitting(plan: MemoryPlan, capacity: int) -> Iterator[tuple[str, int]]:
    """The alternatives that fit, with the bytes that each takes."""
    can_offload = plan.is_cuda and not plan.options.offload
    for (name, other), is_offloaded in product(
        _alternatives(plan), (False, True) if can_offload else (False,)
    ):
        offload = "text-encoder" if is_offloaded else plan.options.offload
        names = [*([name] if name else []), *(["--offload text-encoder"] if is_offloaded else [])]
        size = _smallest_peak(replace(other, options=replace(other.options, offload=offload)))
        if names and size <= capacity:
            yield " with ".join(names), size


def _alternatives(plan: MemoryPlan) -> Iterator[tuple[str, MemoryPlan]]:
    """The plan itself, without a name, and with weights that take less."""
    asked, stored = plan.options.precision, plan.stored_format
    yield "", plan
    if asked.weights == "widened":
        yield "--weights stored", plan.with_weights("stored")
    if stored == "plain" and asked.quantize is None:
        yield "--quantize fp8", _with(plan, replace(asked, quantize="fp8"))
    if stored == "plain" and asked.quantize != "nf4":
        yield "--quantize nf4", _with(plan, PrecisionOptions(quantize="nf4"))
    if stored == "fp8":
        yield "nf4 weights", replace(_with(plan, PrecisionOptions("stored")), files="nf4")


def _with(plan: MemoryPlan, precision: PrecisionOptions) -> MemoryPlan:
    return replace(plan, options=replace(plan.options, precision=precision))
