"""Runs the model on a batch of samples: the only place that stacks tensors."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from engine.checkpoint import Pipeline
from engine.messages import EngineRequest
from engine.models.attention import Packing
from engine.models.dit import DiT, Modulation
from engine.request import Conditioning, SampleState
from engine.sampling import euler_step, guide, initial_noise, time_schedule

PATCH = 2


class ModelRunner:
    """encode_prompt -> new_sample -> denoise_step ... -> decode, for any mix of requests of one size."""

    def __init__(self, pipeline: Pipeline, device: torch.device | str) -> None:
        self.pipeline = pipeline
        self.device = torch.device(device)
        self.pixels_per_token = PATCH * pipeline.vae.config.scale_factor
        self._modulation = lru_cache(maxsize=32)(self._build_modulation)
        self._layout = lru_cache(maxsize=64)(self._build_layout)

    @torch.inference_mode()
    def encode_prompt(self, request: EngineRequest) -> Conditioning:
        """Run the text encoder and everything else that does not depend on the image."""
        features = self.pipeline.text_encoder(request.token_ids)
        sampling = request.sampling
        schedule = (sampling.num_inference_steps, request.width, request.height, sampling.mu, sampling.std)
        guided = any(scale != 1 for scale in sampling.guidance_schedule)
        return Conditioning(
            text=self.pipeline.conditional.project_text(features),
            times=time_schedule(*schedule),
            conditional=self._modulation(self.pipeline.conditional, schedule),
            unconditional=self._modulation(self.pipeline.unconditional, schedule) if guided else None,
        )

    def new_sample(self, request: EngineRequest, image_index: int, conditioning: Conditioning) -> SampleState:
        """A sample at step 0: the noise of its seed."""
        rows, columns = self._grid(request.width, request.height)
        channels = self.pipeline.conditional.config.in_channels
        noise = initial_noise(request.seeds[image_index], rows * columns, channels)
        return SampleState(request, image_index, conditioning, noise.to(self.device))

    @torch.inference_mode()
    def denoise_step(self, samples: Sequence[SampleState]) -> None:
        """Advance each sample by one step, in place. All must have the same batch key."""
        latents = torch.cat([sample.latents for sample in samples])  # (B * N, C)
        velocity = self._predict(samples, latents).unflatten(0, (len(samples), -1))
        steps = [sample.conditioning.times[sample.step_index : sample.step_index + 2] for sample in samples]
        dt = torch.stack(steps).diff().float().to(self.device).unsqueeze(-1)  # (B, 1, 1)
        stepped = euler_step(latents.unflatten(0, (len(samples), -1)), velocity, dt)
        for sample, advanced in zip(samples, stepped.unbind(), strict=True):
            sample.latents = advanced
            sample.step_index += 1

    @torch.inference_mode()
    def decode(self, sample: SampleState) -> bytes:
        """The finished sample's RGB bytes, row-major."""
        pixels = self.pipeline.vae.decode(self._to_vae_latents(sample))[0]
        rgb = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return rgb.permute(1, 2, 0).contiguous().cpu().numpy().tobytes()

    def _predict(self, samples: Sequence[SampleState], latents: Tensor) -> Tensor:
        """Guided velocity (B * N, C) of each sample's next step."""
        conditional = self._run(
            self.pipeline.conditional,
            samples,
            latents,
            [sample.conditioning.text for sample in samples],
            [sample.conditioning.conditional.at(sample.step_index) for sample in samples],
        )
        guided = [index for index, sample in enumerate(samples) if sample.guidance != 1]
        if not guided:
            return conditional
        conditional = conditional.unflatten(0, (len(samples), -1))
        latents = latents.unflatten(0, (len(samples), -1))
        chosen = [samples[index] for index in guided]
        unconditional = self._run(
            self.pipeline.unconditional,
            chosen,
            latents[guided].flatten(0, 1),
            [],
            [_required(sample.conditioning.unconditional).at(sample.step_index) for sample in chosen],
        ).unflatten(0, (len(guided), -1))
        scale = torch.tensor([sample.guidance for sample in chosen], device=self.device).view(-1, 1, 1)
        conditional[guided] = guide(conditional[guided], unconditional, scale)
        return conditional.flatten(0, 1)

    def _run(
        self,
        dit: DiT,
        samples: Sequence[SampleState],
        latents: Tensor,
        text: list[Tensor],
        modulations: list[Modulation],
    ) -> Tensor:
        text_lens = tuple(map(len, text)) or (0,) * len(samples)
        packing, rotary = self._layout(dit, text_lens, *samples[0].batch_key)
        return dit(latents, text, Modulation.stack(modulations), rotary, packing)

    def _build_layout(
        self, dit: DiT, text_lens: tuple[int, ...], width: int, height: int
    ) -> tuple[Packing, Tensor]:
        rows, columns = self._grid(width, height)
        image_lens = [rows * columns] * len(text_lens)
        tables = [dit.rotary(length, rows, columns, self.device) for length in text_lens]
        return Packing.build(list(text_lens), image_lens, self.device), torch.cat(tables, dim=1)

    @torch.inference_mode()
    def _build_modulation(self, dit: DiT, schedule: tuple[int, int, int, float, float]) -> Modulation:
        return dit.modulate(time_schedule(*schedule)[:-1].float().to(self.device))

    def _to_vae_latents(self, sample: SampleState) -> Tensor:
        """Tokens (N, 4 * c), patch pixels outermost, -> (1, c, 2 * rows, 2 * columns) in VAE units."""
        rows, columns = self._grid(*sample.batch_key)
        norm, vae = self.pipeline.latent_norm, self.pipeline.vae
        z = sample.latents * norm.scale + norm.shift
        z = z.view(rows, columns, PATCH, PATCH, -1).permute(4, 0, 2, 1, 3)
        z = z.reshape(1, -1, rows * PATCH, columns * PATCH)
        return z.to(vae.decoder.conv_in.weight.dtype)

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return height // self.pixels_per_token, width // self.pixels_per_token


def _required(modulation: Modulation | None) -> Modulation:
    assert modulation is not None, "a guided step needs the unconditional modulation"
    return modulation
