"""A text encoder whose weights stay in the memory of the host."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.checkpoint.loader import load_pipeline
from engine.config.part_folders import PartFolders
from engine.memory.bounds import LAYERS_IN_FLIGHT
from engine.models.offloaded_layers import Fetched, OffloadedLayers
from engine.models.text_encoder import TextEncoder
from tests.engine.checkpoints import Checkpoint
from tests.engine.conftest import Runners

PROMPTS = [tuple(range(3, 20)), tuple(range(40, 49))]


class HeldFetch:
    """Copies each layer to a second place in memory. A copy is done once something waits for it, or
    `release`."""

    def __init__(self) -> None:
        self.started: list[nn.Module] = []
        self.done: set[nn.Module] = set()
        self.held: list[dict[str, Tensor]] = []

    def __call__(self, layer: nn.Module) -> Fetched:
        self.started.append(layer)
        weights = {name: weight.clone() for name, weight in layer.named_parameters()}
        self.held.append(weights)
        return Fetched(weights, lambda: layer in self.done, lambda: self.done.add(layer))

    @property
    def layers_held(self) -> int:
        return sum(bool(weights) for weights in self.held)


@pytest.fixture
def encoder(checkpoint: Checkpoint) -> TextEncoder:
    return load_pipeline(PartFolders.of(checkpoint.path), "cpu", torch.float32).text_encoder


def offloaded(encoder: TextEncoder) -> HeldFetch:
    fetch = HeldFetch()
    encoder.language_model.layers = OffloadedLayers(encoder.language_model.layers, fetch)
    return fetch


@torch.inference_mode()
def test_the_features_are_the_same_bit_for_bit(encoder: TextEncoder) -> None:
    expected = [encoder(prompt) for prompt in PROMPTS]
    fetch = offloaded(encoder)
    for prompt, features in zip(PROMPTS, expected, strict=True):
        assert torch.equal(encoder(prompt), features)
    assert fetch.layers_held == 0
    assert len(fetch.started) == 2 * 36


@torch.inference_mode()
def test_the_next_layers_are_copied_while_one_runs(encoder: TextEncoder) -> None:
    fetch = offloaded(encoder)
    for number, _ in enumerate(encoder.encode(PROMPTS[:1])):
        assert len(fetch.started) == min(36, number + LAYERS_IN_FLIGHT)
        assert fetch.layers_held == min(LAYERS_IN_FLIGHT, 36 - number)


@torch.inference_mode()
def test_it_is_fetching_until_the_next_layer_is_there(encoder: TextEncoder) -> None:
    fetch = offloaded(encoder)
    assert not encoder.is_fetching
    parts = encoder.encode(PROMPTS[:1])
    next(parts)
    assert encoder.is_fetching
    fetch.done.add(fetch.started[1])
    assert not encoder.is_fetching


@torch.inference_mode()
def test_two_encodes_in_turns_do_not_affect_each_other(encoder: TextEncoder) -> None:
    expected = [encoder(prompt) for prompt in PROMPTS]
    offloaded(encoder)
    results: list[Tensor] = []
    waiting = [encoder.encode([prompt]) for prompt in PROMPTS]
    while waiting:
        for parts in tuple(waiting):
            try:
                next(parts)
            except StopIteration as end:
                results.append(end.value)
                waiting.remove(parts)
    assert all(torch.equal(result, features) for result, features in zip(results, expected, strict=True))


@torch.inference_mode()
def test_on_a_cpu_the_layers_themselves_run(checkpoint: Checkpoint, runners: Runners) -> None:
    folders = PartFolders.of(Path(checkpoint.path))
    encoder = load_pipeline(folders, "cpu", torch.float32, offloads=True).text_encoder
    assert isinstance(encoder.language_model.layers, OffloadedLayers)
    assert not encoder.is_fetching
    assert torch.equal(encoder(PROMPTS[0]), runners("diffusers").pipeline.text_encoder(PROMPTS[0]))
