"""Chooses the kernels of a loaded model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.checkpoint.loader import Pipeline, load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_configs import PartConfigs
from engine.config.part_folders import loaded_folders
from engine.kernels.candidates import Machine
from engine.runner.device import Device
from engine.tuning.arithmetic import choose_arithmetic
from engine.tuning.cases import Case, Shapes, find_cases
from engine.tuning.machine import cache_folder, describe
from engine.tuning.pins import Pin, check_operations, pinned
from engine.tuning.race import race, winner
from engine.tuning.store import ChoiceStore, Measured
from engine.tuning.weights import check_device, widen_weights

_SECONDS = 0.6  # over all cases; a case of large shapes takes longer
# Tokens of a prompt: a typical one, and a long one.
_PROMPTS = (30, 300)
_MOST_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Tuning:
    """The candidates that were measured, now or at an earlier start, with their gains; and those pinned."""

    dtype: torch.dtype
    choices: dict[str, str]
    gains: dict[str, float]
    pins: dict[str, str]
    is_kept: bool

    def fields(self) -> dict[str, object]:
        """For the log: the candidate of each case, and how much longer the default takes."""
        measured = {key: f"{name} {self.gains[key]:+.0%}" for key, name in self.choices.items()}
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "measured": "earlier" if self.is_kept else "now",
            "kernels": measured | {key: f"{name} pinned" for key, name in self.pins.items()},
        }


def load_tuned(config: ModelConfig, options: EngineOptions, device: torch.device) -> tuple[Pipeline, Tuning]:
    """Load the model in the chosen precision with the chosen kernels, and set the number of threads.

    Raises CheckpointError or OptionError.
    """
    check_operations(options.kernels)
    store = ChoiceStore(cache_folder())
    folders = loaded_folders(config.folders, options)
    parts = PartConfigs.read(folders)
    tokens = _image_tokens(parts.vae.pixels_per_token, config.default_width, config.default_height)
    chosen = choose_arithmetic(device, options.dtype, parts.transformer, tokens + _PROMPTS[0], store)
    torch.set_num_threads(chosen.threads)
    check_device(options.precision, device, chosen.dtype)
    pipeline = load_pipeline(
        folders,
        device,
        chosen.dtype,
        options.uncond_device,
        options.precision,
        edits=options.edits,
        offloads=options.offload == "text-encoder",
    )
    widen_weights(pipeline, options.precision, transformer_rows(pipeline, config), store)
    return pipeline, tune(pipeline, config, options.kernels, store)


def tune(pipeline: Pipeline, config: ModelConfig, pins: Sequence[Pin], store: ChoiceStore) -> Tuning:
    """Measure the candidates of every operation, unless `store` holds the choices, and apply the winners.

    Raises OptionError if a pin fits no operation of the model or has no such candidate on this machine.
    """
    device = pipeline.conditional.device
    machine = Machine(device.type, pipeline.conditional.dtype)
    cases = find_cases(model_parts(pipeline, config), machine)
    fixed = pinned(cases, pins)
    measured, is_kept = _measured([case for case in cases if case.key not in fixed], device, machine, store)
    _apply(cases, measured.choices | fixed)
    Device(device).release_memory()  # that replaced weights took
    return Tuning(machine.dtype, measured.choices, measured.gains, fixed, is_kept)


def model_parts(pipeline: Pipeline, config: ModelConfig) -> list[tuple[torch.nn.Module, Shapes]]:
    """The parts whose kernels are chosen, with the tokens of the model's smallest and default image."""
    limits, pixels = config.limits, pipeline.vae.config.pixels_per_token
    image, longest = _image_tokens(pixels, limits.max_size, limits.max_size), limits.max_prompt_tokens
    prompts = tuple(min(tokens, longest) for tokens in _PROMPTS)
    transformer = Shapes(transformer_rows(pipeline, config), image + longest)
    parts: list[tuple[torch.nn.Module, Shapes]] = [
        (pipeline.conditional, transformer),
        (pipeline.unconditional, transformer),
    ]
    encoder = pipeline.text_encoder
    if encoder.device == encoder.weights_device:  # an offloaded one keeps its defaults
        parts.append((encoder, Shapes(prompts, longest)))
    return parts


def transformer_rows(pipeline: Pipeline, config: ModelConfig) -> tuple[int, ...]:
    """Typical numbers of tokens: of the smallest and the default image, each with a typical prompt."""
    pixels, least = pipeline.vae.config.pixels_per_token, config.limits.min_size
    small = _image_tokens(pixels, least, least)
    default = _image_tokens(pixels, config.default_width, config.default_height)
    return tuple(sorted({min(tokens + _PROMPTS[0], _MOST_ROWS) for tokens in (small, default)}))


def _image_tokens(pixels_per_token: int, width: int, height: int) -> int:
    return (width // pixels_per_token) * (height // pixels_per_token)


def _measured(
    cases: Sequence[Case], device: torch.device, machine: Machine, store: ChoiceStore
) -> tuple[Measured, bool]:
    names = {case.key: case.names for case in cases}
    key = {**describe(device), "dtype": machine.dtype, "cases": names}
    return store.recall(key, names, lambda: _measure(cases, Device(device)))


@torch.inference_mode()
def _measure(cases: Sequence[Case], device: Device) -> Measured:
    choices: dict[str, str] = {}
    gains: dict[str, float] = {}
    for case in cases:
        choices[case.key], gains[case.key] = _fastest(case, _SECONDS / len(cases), device)
    return Measured(choices, gains)


def _fastest(case: Case, seconds: float, device: Device) -> tuple[str, float]:
    """The winner and its gain. It must beat the default twice, since other load may disturb a race."""
    runs = {candidate.name: case.trials(candidate) for candidate in case.candidates}
    default = case.names[0]
    best = winner(race(runs, seconds / 2, device.synchronize))
    if best == default:
        return default, 0.0
    times = race({name: runs[name] for name in (default, best)}, seconds / 2, device.synchronize)
    return (best, times[default] / times[best] - 1) if winner(times) == best else (default, 0.0)


@torch.inference_mode()
def _apply(cases: Sequence[Case], choices: Mapping[str, str]) -> None:
    for case in cases:
        case.apply(case.candidate(choices[case.key]))
