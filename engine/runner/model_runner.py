"""Runs the model on a batch of samples. The only module that stacks tensors."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from engine.checkpoint.loader import Pipeline
from engine.kernels.packing import Packing
from engine.models.dit import PLAIN, DiT, Modulation, compile_parts
from engine.models.resumable import calling
from engine.quantized.kept import precision_of
from engine.request import EngineRequest
from engine.runner.cuda_graphs import Pass, RecordedPass, Recorder
from engine.runner.device import Device
from engine.runner.preview import PreviewMap
from engine.runner.prompt_encoder import PromptEncoder
from engine.runner.request_state import Conditioning, Preview, RequestState, SampleState
from engine.runner.sampling import euler_step, guide, initial_noise, time_schedule

PATCH = 2


class ModelRunner:
    """encode -> new_sample -> denoise_step ... -> decode, for any mix of requests of one size.

    `parts` run the blocks, and `compiled_parts` those of requests that are compiled.
    With an `uncond_device` the unconditional pass runs there, in parallel with the conditional one. With a
    `recorder` (one per device) small passes are recorded as CUDA graphs and replayed.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        device: torch.device | str,
        uncond_device: torch.device | str | None = None,
        compiled: bool = False,
        recorder: Callable[[torch.device], Recorder] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.device = Device(device)
        self.uncond_device = torch.device(uncond_device or device)
        self.precision = precision_of(pipeline.conditional.layers, pipeline.conditional.dtype)
        self.pixels_per_token = PATCH * pipeline.vae.config.scale_factor
        self._beside = ThreadPoolExecutor(1) if uncond_device else None
        self._prompts = PromptEncoder(pipeline, self.device)
        self._modulation = lru_cache(maxsize=32)(self._build_modulation)
        self._packing = lru_cache(maxsize=64)(self._build_packing)
        self._preview_map = PreviewMap.of(pipeline)
        self._passes: dict[DiT, Pass] = {dit: dit for dit in (pipeline.conditional, pipeline.unconditional)}
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

    @torch.inference_mode()
    def encode(self, requests: Sequence[EngineRequest]) -> Generator[None, None, list[Conditioning]]:
        """Compute everything that does not depend on the image. Yields between layers of the text encoder."""
        texts = yield from self._prompts.encode([request.token_ids for request in requests])
        return [self._condition(request, texts[request.token_ids]) for request in requests]

    def _condition(self, request: EngineRequest, text: Tensor) -> Conditioning:
        sampling = request.sampling
        schedule = (sampling.num_inference_steps, request.width, request.height, sampling.mu, sampling.std)
        guided = any(scale != 1 for scale in sampling.guidance_schedule)
        return Conditioning(
            text=text,
            times=time_schedule(*schedule),
            conditional=self._modulation(self.pipeline.conditional, schedule),
            unconditional=self._modulation(self.pipeline.unconditional, schedule) if guided else None,
        )

    def new_sample(self, state: RequestState, image_index: int) -> SampleState:
        """A sample at step 0: noise drawn from its seed."""
        request = state.request
        rows, columns = self._grid(request.width, request.height)
        channels = self.pipeline.conditional.config.in_channels
        noise = initial_noise(request.seeds[image_index], rows * columns, channels)
        return SampleState(state, image_index, self.device.send(noise))

    @torch.inference_mode()
    def denoise_step(self, samples: Sequence[SampleState]) -> None:
        """Advance every sample by one step, in place, or on an error none. All must share a batch key.

        Waits for the previous step only, so that the device always has work queued. NaN and infinity are
        detected when the image is read; samples do not affect each other.
        """
        latents = torch.stack([sample.latents for sample in samples])  # (B, N, C)
        velocity = self._predict(samples, latents)
        times = torch.stack([_times(sample) for sample in samples])  # (B, 2)
        dt = self.device.send(times.diff().float().unsqueeze(-1))  # (B, 1, 1)
        stepped = euler_step(latents, velocity, dt)
        cleans = [
            z + v * (1 - end) if sample.is_preview_next else None
            for sample, z, v, end in zip(samples, stepped, velocity, times[:, 1].tolist(), strict=True)
        ]
        for sample, z, clean in zip(samples, stepped, cleans, strict=True):
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
        latents = [self._to_vae_latents(sample.latents, *sample.request.resolution) for sample in samples]
        parts = self.pipeline.vae.decode_parts(torch.stack(latents))
        pixels = yield from calling(parts, self.device.synchronize)  # so that the caller can measure time
        return [_to_rgb(image.float()) for image in pixels]

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
        return Preview(pixels.shape[1], pixels.shape[0], _to_bytes(pixels))

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
        text = [_conditioning(sample).text for sample in samples]
        modulations = [_conditioning(sample).conditional.at(sample.step_index) for sample in samples]
        return self._run(self.pipeline.conditional, samples, latents, text, modulations)

    @torch.inference_mode()  # again, since it may run in another thread
    def _unconditional(self, samples: Sequence[SampleState], latents: Tensor) -> Tensor:
        modulations = [_required(_conditioning(s).unconditional).at(s.step_index) for s in samples]
        moved = latents.to(self.uncond_device)
        return self._run(self.pipeline.unconditional, samples, moved, [], modulations).to(self.device.torch)

    def _run(
        self,
        dit: DiT,
        samples: Sequence[SampleState],
        latents: Tensor,
        text: list[Tensor],
        modulations: list[Modulation],
    ) -> Tensor:
        """Velocity (B, N, C) from one transformer."""
        text_lens = tuple(map(len, text)) or (0,) * len(samples)
        packing, rotary = self._packing(dit, text_lens, *samples[0].request.resolution)
        modulation = Modulation.stack(modulations)
        dit.parts = self.compiled_parts if samples[0].state.is_compiled else self.parts
        velocity = self._passes[dit](latents.flatten(0, 1), text, modulation, rotary, packing)
        return velocity.view_as(latents)

    def _build_packing(
        self, dit: DiT, text_lens: tuple[int, ...], width: int, height: int
    ) -> tuple[Packing, Tensor]:
        rows, columns = self._grid(width, height)
        image_lens = [rows * columns] * len(text_lens)
        tables = [dit.rotary(length, rows, columns, dit.device) for length in text_lens]
        return Packing.build(list(text_lens), image_lens, dit.device), torch.cat(tables, dim=1)

    @torch.inference_mode()
    def _build_modulation(self, dit: DiT, schedule: tuple[int, int, int, float, float]) -> Modulation:
        return dit.modulate(time_schedule(*schedule)[:-1].float().to(dit.device))

    def _to_vae_latents(self, tokens: Tensor, width: int, height: int) -> Tensor:
        """Tokens (N, 4 * c), patch pixels outermost, -> (c, 2 * rows, 2 * columns) in VAE units."""
        rows, columns = self._grid(width, height)
        norm = self.pipeline.latent_norm
        z = (tokens * norm.scale + norm.shift).view(rows, columns, PATCH, PATCH, -1)
        return z.permute(4, 0, 2, 1, 3).reshape(-1, rows * PATCH, columns * PATCH)

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return height // self.pixels_per_token, width // self.pixels_per_token


def _conditioning(sample: SampleState) -> Conditioning:
    assert sample.state.conditioning is not None, "the prompt is not encoded"
    return sample.state.conditioning


def _required(modulation: Modulation | None) -> Modulation:
    assert modulation is not None, "a guided step needs the unconditional modulation"
    return modulation


def _times(sample: SampleState) -> Tensor:
    """Start and end time of the next step, (2,)."""
    return _conditioning(sample).times[sample.step_index : sample.step_index + 2]


def _to_rgb(pixels: Tensor) -> bytes | FloatingPointError:
    """Pixels (3, h, w) in [-1, 1] to bytes."""
    if not pixels.isfinite().all():
        return FloatingPointError("the pixels are not finite")
    rgb = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return _to_bytes(rgb.permute(1, 2, 0))


def _to_bytes(pixels: Tensor) -> bytes:
    data: bytes = pixels.contiguous().cpu().numpy().tobytes()
    return data
