"""Sizes and batches that fit in the memory of a device, and models that do not."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load import TEXT
from benchmarks.plans import published_plan
from benchmarks.random_checkpoint import write_checkpoint
from engine.config.options import EngineOptions
from engine.config.part_configs import DiTConfig, VAEConfig
from engine.errors import OptionError
from engine.memory.fitting import bounded
from engine.memory.plan import MemoryPlan

GB = 10**9


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> MemoryPlan:
    """Of the published fp8 checkpoint on a GPU; `capacity` is to be replaced."""
    folder: Path = tmp_path_factory.mktemp("published")
    write_checkpoint(folder, "fp8", DiTConfig(), TEXT, VAEConfig(), full=())
    return published_plan(folder)


def test_nothing_is_bounded_where_all_fits(plan: MemoryPlan) -> None:
    assert bounded(replace(plan, capacity=80 * GB)) == (plan.config, plan.options)


def test_nothing_is_bounded_by_an_unknown_memory(plan: MemoryPlan) -> None:
    assert bounded(replace(plan, capacity=None)) == (plan.config, plan.options)


def few(plan: MemoryPlan) -> MemoryPlan:
    """The plan with no more images in progress than fill a batch."""
    return replace(plan, options=replace(plan.options, max_running=plan.options.max_batch_size))


def test_the_largest_size_that_fits_is_the_limit(plan: MemoryPlan) -> None:
    tight = replace(plan, capacity=few(plan).peak(1536, 1536))
    config, _ = bounded(tight)
    assert config.limits == replace(plan.config.limits, max_size=1536)
    config, _ = bounded(replace(tight, capacity=tight.capacity - 1))  # type: ignore[operator]
    assert config.limits.max_size == 1520


def test_images_in_progress_are_limited_before_the_size(plan: MemoryPlan) -> None:
    least, most = few(plan).peak(2048, 2048), plan.peak(2048, 2048)
    for capacity, running in ((least, 8), (most - 1, 8), (most, 64)):
        config, options = bounded(replace(plan, capacity=capacity))
        assert config.limits.max_size == 2048
        assert options.max_running == running


def test_batches_fit_beside_paused_work(plan: MemoryPlan) -> None:
    plan = replace(plan, options=EngineOptions(max_batch_tokens=1_000_000))
    for images in (2, 3):
        tight = replace(plan, capacity=plan.peak(2048, 2048, images))
        _, options = bounded(tight)
        tokens = plan.tokens(2048, 2048) + plan.longest_prompt
        assert options.max_batch_tokens // tokens == images
        assert plan.work.encode(options.max_encode_tokens) <= tight.capacity  # type: ignore[operator]
        assert options.max_decode_tokens >= plan.tokens(2048, 2048)
    tokens = plan.tokens(1024, 1024) + plan.longest_prompt
    _, options = bounded(replace(plan, capacity=few(plan).peak(1024, 1024)))
    assert options.max_batch_tokens < 2 * tokens, "one image alone"


def test_weights_may_be_widened_only_where_that_bounds_nothing(plan: MemoryPlan) -> None:
    widened = plan.with_weights("widened")
    roomy = replace(plan, capacity=widened.peak(2048, 2048, 20))
    assert bounded(roomy)[1].precision.weights == "auto"
    for capacity in (widened.peak(2048, 2048) - 1, plan.peak(1024, 1024)):
        _, options = bounded(replace(plan, capacity=capacity))
        assert options.precision.weights == "stored"
    asked = replace(widened, capacity=few(widened).peak(1536, 1536))
    config, options = bounded(asked)
    assert (config.limits.max_size, options.precision.weights) == (1536, "widened")


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        (
            27,
            r"would fit: --offload text-encoder \(\d+\.\d GB\); nf4 weights \(\d+\.\d GB\); nf4 weights with",
        ),
        (20, r"would fit: nf4 weights \("),
        (16, r"would fit: nf4 weights with --offload text-encoder \(1\d\.\d GB\)$"),
        (8, r"would fit: nothing$"),
    ],
)
def test_a_refusal_says_what_would_fit(plan: MemoryPlan, capacity: int, words: str) -> None:
    with pytest.raises(OptionError, match=words) as refused:
        bounded(replace(plan, capacity=capacity * GB))
    taken = few(plan).peak(1024, 1024) / GB
    assert f"takes {taken:.1f} GB for an image of 1024x1024, and {capacity}.0 GB are available" in str(
        refused.value
    )


def test_no_offload_is_proposed_on_a_cpu(plan: MemoryPlan) -> None:
    with pytest.raises(OptionError, match=r"would fit: nf4 weights \([^-]*$"):
        bounded(replace(plan, capacity=22 * GB, is_cuda=False))


def test_weights_that_are_widened_would_fit_as_stored(plan: MemoryPlan) -> None:
    widened = replace(plan.with_weights("widened"), capacity=40 * GB)
    with pytest.raises(
        OptionError, match=r"would fit: --weights stored \(29\.\d GB\); --weights stored with"
    ):
        bounded(widened)


def test_plain_weights_would_fit_quantised(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "bf16", DiTConfig(), TEXT, VAEConfig(), full=())
    plan = replace(published_plan(tmp_path), capacity=32 * GB)
    with pytest.raises(OptionError, match=r"would fit: --quantize fp8 \(.*; --quantize nf4 \("):
        bounded(plan)


def test_options_that_are_stricter_stay(plan: MemoryPlan) -> None:
    strict = EngineOptions(max_batch_tokens=5000, max_encode_tokens=2048, max_decode_tokens=4096)
    assert bounded(replace(plan, capacity=80 * GB, options=strict))[1] == strict
