"""Runs the model on a batch of samples. The only module that stacks tensors."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from engine.adapters.adapter import Adapter
from engine.adapters.passes import AdapterPasses, Held, Progress
from engine.checkpoint.loader import Pipeline
from engine.kernels.packing import Packing
from engine.memory.bounds import PACKINGS
from engine.models.dit import PLAIN, DiT, Modulation, compile_parts
from engine.models.low_rank import BatchUpdates
from engine.quantized.kept import precision_of
from engine.request import EngineRequest
from engine.runner.cuda_graphs import Pass, RecordedPass, Recorder
from engine.runner.device import Device
from engine.runner.image_codec import PATCH, ImageCodec, to_bytes
from engine.runner.preview import PreviewMap
from engine.runner.prompt_encoder import PromptEncoder
from engine.runner.request_state import Conditioning, Preview, RequestState, SampleState
from engine.runner.sampling import (
    EncodedSource,
    Known,
    add_noise,
    euler_step,
    guide,
    initial_noise,
    noise_level,
    time_schedule,
)


class ModelRunner:
    """encode -> encode_sources -> new_sample -> denoise_step ... -> decode, for any requests of one size.

    `parts` run the blocks, and `compiled_parts` those of requests that are compiled.
    With an `uncond_device` the unconditional pass runs there, in parallel with the conditional one. With a
    `recorder` (one per device) small passes are recorded as CUDA graphs and replayed. `adapters` holds those
    of the requests. With an `uncond_adapter` the conditional transformer runs both passes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        device: torch.device | str,
        uncond_device: torch.device | str | None = None,
        compiled: bool = False,
        recorder: Callable[[torch.device], Recorder] | None = None,
        adapters: Held | None = None,
        uncond_adapter: Adapter | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.device = Device(device)
        self.uncond_device = torch.device(uncond_device or device)
        self.precision = precision_of(pipeline.conditional.layers, pipeline.conditional.dtype)
        self.pixels_per_token = PATCH * pipeline.vae.config.scale_factor
        self._beside = ThreadPoolExecutor(1) if uncond_device else None
        self._prompts = PromptEncoder(pipeline, self.device)
        self._images = ImageCodec(pipeline, self.device)
        self._packing = lru_cache(PACKINGS)(self._build_packing)
        transformers = pipeline.conditional, pipeline.unconditional
        self._adapters = AdapterPasses(*transformers, {} if adapters is None else adapters, uncond_adapter)
        self._preview_map = PreviewMap.of(pipeline)
        self._passes: dict[DiT, Pass] = {dit: dit for dit in transformers}
        if recorder:
            self._passes = {dit: RecordedPass(dit, recorder(dit.device)) for dit in self._passes}
        self.parts = compile_parts() if compiled else PLAIN
        self.compiled_parts = self.parts

    @property
    def cache_hits(self) -> int:
        return self._prompts.cache.hits

    @property
    def cache_misses(self) -> int:
        return self._prompts.cache.misses

    def is_cached(self, request: EngineRequest) -> bool:
        """Whether the request's prompt need not be encoded."""
        return request.token_ids in self._prompts.cache

    def is_fetching(self) -> bool:
        """Whether weights of an offloaded text encoder are being copied to the device."""
        return self.pipeline.text_encoder.is_fetching

    @torch.inference_mode()
    def encode(self, requests: Sequence[EngineRequest]) -> Generator[None, None, list[Conditioning]]:
        """Compute everything that does not depend on the image. Yields between layers of the text encoder."""
        texts = yield from self._prompts.encode([request.token_ids for request in requests])
        return [self._condition(request, texts[request.token_ids]) for request in requests]

    def _condition(self, request: EngineRequest, text: Tensor) -> Conditioning:
        sampling = request.sampling
        times = time_schedule(sampling.num_inference_steps, *request.resolution, sampling.mu, sampling.std)
        guided = any(scale != 1 for scale in sampling.guidance_schedule)
        adapters = self._adapters.find(request.adapters)
        return Conditioning(text, times, *self._adapters.modulations(adapters, times, guided), adapters)

    @torch.inference_mode()
    def encode_sources(self, requests: Sequence[EngineRequest]) -> Generator[None, None, list[EncodedSource]]:
        """Encode the source images of these requests, of one size. Yields between parts of the VAE."""
        return (yield from self._images.encode(requests))

    @torch.inference_mode()
    def new_sample(self, state: RequestState, image_index: int) -> SampleState:
        """A sample at its first step: the noise of its seed, alone or mixed with the source."""
        rows, columns = self._grid(*state.request.resolution)
        channels = self.pipeline.conditional.config.in_channels
        seed = state.request.seeds[image_index]
        noise = self.device.send(initial_noise(seed, rows * columns, channels))
        source = state.source
        if source is None:
            return SampleState(state, image_index, noise)
        known = None if source.painted is None else Known(source.latents, source.painted, noise)
        level = noise_level(state.conditioned.times, state.request.first_step)
        return SampleState(state, image_index, add_noise(source.latents, noise, level), known)

    @torch.inference_mode()
    def denoise_step(self, samples: Sequence[SampleState]) -> None:
        """Advance every sample by one step, in place, or on an error none. All must share a batch key.

        Waits for the previous step only, so that the device always has work queued. NaN and infinity are
        detected when the image is read; samples do not affect each other.
        """
        latents = torch.stack([sample.latents for sample in samples])  # (B, N, C)
        velocity = self._predict(samples, latents)
        times = torch.stack([sample.times for sample in samples])  # (B, 2)
        dt = self.device.send(times.diff().float().unsqueeze(-1))  # (B, 1, 1)
        stepped = euler_step(latents, velocity, dt)
        cleans = [
            z + v * (1 - end) if sample.is_preview_next else None
            for sample, z, v, end in zip(samples, stepped, velocity, times[:, 1].tolist(), strict=True)
        ]
        kept = [_keep(*each) for each in zip(samples, stepped, cleans, strict=True)]
        for sample, (z, clean) in zip(samples, kept, strict=True):
            sample.latents, sample.clean = z, clean
            sample.step_index += 1
        self.device.end_step()

    @torch.inference_mode()
    def decode(
        self, samples: Sequence[SampleState]
    ) -> Generator[None, None, list[bytes | FloatingPointError]]:
        """The finished samples, of one size, as RGB bytes, row-major. Yields between parts of the VAE.

        The result of a sample with NaN or infinity is an error.
        """
        return (yield from self._images.decode(samples))

    @torch.inference_mode()
    def preview(self, sample: SampleState) -> Preview:
        """The clean image predicted at the last step, one pixel per latent.

        Raises FloatingPointError on NaN or infinity.
        """
        assert sample.clean is not None, "no preview is due"
        if not sample.clean.isfinite().all():
            raise FloatingPointError("the latents are not finite")
        pixels = self._preview_map(sample.clean, *self._grid(*sample.request.resolution))
        sample.clean = None
        return Preview(pixels.shape[1], pixels.shape[0], to_bytes(pixels))

    def clear_cache(self) -> None:
        """Drop all cached prompts and reset the counters."""
        self._prompts.clear_cache()

    def _predict(self, samples: Sequence[SampleState], latents: Tensor) -> Tensor:
        """Guided velocity (B, N, C) of each sample's next step."""
        guided = [row for row, sample in enumerate(samples) if sample.guidance != 1]
        if not guided:
            return self._conditional(samples, latents)
        chosen, index = [samples[row] for row in guided], self.device.send(torch.tensor(guided))
        started = latents.index_select(0, index)
        pending = self._beside.submit(self._unconditional, chosen, started) if self._beside else None
        conditional = self._conditional(samples, latents)
        unconditional = pending.result() if pending else self._unconditional(chosen, started)
        scale = self.device.send(torch.tensor([sample.guidance for sample in chosen])).view(-1, 1, 1)
        mixed = guide(conditional.index_select(0, index), unconditional, scale)
        return conditional.index_copy(0, index, mixed)

    def _conditional(self, samples: Sequence[SampleState], latents: Tensor) -> Tensor:
        text = [sample.state.conditioned.text for sample in samples]
        modulations = [sample.state.conditioned.conditional.at(sample.step_index) for sample in samples]
        updates = self._adapters.conditional(_progress(samples))
        return self._run(self.pipeline.conditional, samples, latents, text, modulations, updates)

    @torch.inference_mode()  # again, since it may run in another thread
    def _unconditional(self, samples: Sequence[SampleState], latents: Tensor) -> Tensor:
        modulations = [_required(s.state.conditioned.unconditional).at(s.step_index) for s in samples]
        updates = self._adapters.unconditional(_progress(samples))
        moved = latents.to(self.uncond_device)
        velocity = self._run(self.pipeline.unconditional, samples, moved, [], modulations, updates)
        return velocity.to(self.device.torch)

    def _run(
        self,
        dit: DiT,
        samples: Sequence[SampleState],
        latents: Tensor,
        text: list[Tensor],
        modulations: list[Modulation],
        updates: BatchUpdates | None,
    ) -> Tensor:
        """Velocity (B, N, C) from one transformer."""
        text_lens = tuple(map(len, text)) or (0,) * len(samples)
        packing, rotary = self._packing(dit, text_lens, *samples[0].request.resolution)
        modulation = Modulation.stack(modulations)
        dit.parts = self.compiled_parts if samples[0].state.is_compiled else self.parts
        velocity = self._passes[dit](latents.flatten(0, 1), text, modulation, rotary, packing, updates)
        return velocity.view_as(latents)

    def _build_packing(
        self, dit: DiT, text_lens: tuple[int, ...], width: int, height: int
    ) -> tuple[Packing, Tensor]:
        rows, columns = self._grid(width, height)
        image_lens = [rows * columns] * len(text_lens)
        tables = [dit.rotary(length, rows, columns, dit.device) for length in text_lens]
        return Packing.build(list(text_lens), image_lens, dit.device), torch.cat(tables, dim=1)

    def image_tokens(self, width: int, height: int) -> int:
        """Tokens of an image; width and height in pixels."""
        rows, columns = self._grid(width, height)
        return rows * columns

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return height // self.pixels_per_token, width // self.pixels_per_token


def _keep(sample: SampleState, latents: Tensor, clean: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The results of a step, with what a mask keeps."""
    if sample.known is None:
        return latents, clean
    level = noise_level(sample.state.conditioned.times, sample.step_index + 1)
    kept = None if clean is None else sample.known.keep(clean, 1.0)
    return sample.known.keep(latents, level), kept


def _progress(samples: Sequence[SampleState]) -> list[Progress]:
    return [(sample.state.conditioned.adapters, sample.step_index) for sample in samples]


def _required(modulation: Modulation | None) -> Modulation:
    assert modulation is not None, "a guided step needs the unconditional modulation"
    return modulation
