"""Between pixels and the transformers' latents: encodes sources and decodes samples with the VAE."""

from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint.loader import Pipeline
from engine.models.resumable import calling
from engine.request import EngineRequest, SourceImage
from engine.runner.device import Device
from engine.runner.request_state import SampleState
from engine.runner.sampling import EncodedSource

PATCH = 2


class ImageCodec:
    """Runs the VAE on images of one size. Its generators yield between parts of the VAE."""

    def __init__(self, pipeline: Pipeline, device: Device) -> None:
        self._pipeline = pipeline
        self._device = device

    def decode(
        self, samples: Sequence[SampleState]
    ) -> Generator[None, None, list[bytes | FloatingPointError]]:
        """RGB bytes, row-major. The result of a sample with NaN or infinity is an error."""
        norm, side = self._pipeline.latent_norm, self._pipeline.vae.config.pixels_per_token
        width, height = samples[0].request.resolution
        tokens = (sample.latents * norm.scale + norm.shift for sample in samples)
        latents = [unpatchify(each, height // side, width // side) for each in tokens]
        parts = self._pipeline.vae.decode_parts(torch.stack(latents))
        pixels = yield from calling(parts, self._device.synchronize)  # so that the caller can measure time
        return [
            self._to_rgb(image.float(), sample.request) for image, sample in zip(pixels, samples, strict=True)
        ]

    def encode(self, requests: Sequence[EngineRequest]) -> Generator[None, None, list[EncodedSource]]:
        """The sources of these requests as latents."""
        encoder = self._pipeline.vae_encoder
        assert encoder is not None, "the VAE encoder is not loaded"
        pixels = torch.stack([self._pixels(request) for request in requests])
        means = yield from calling(encoder.encode_parts(pixels), self._device.synchronize)
        return [
            EncodedSource(self._normalized(mean.float()), self._painted(request))
            for mean, request in zip(means, requests, strict=True)
        ]

    def _pixels(self, request: EngineRequest) -> Tensor:
        """The source (3, h, w) in [-1, 1]."""
        rgb = self._bytes(_source(request).rgb, request.height, request.width, 3)
        return rgb.permute(2, 0, 1).float() / 127.5 - 1

    def _normalized(self, latents: Tensor) -> Tensor:
        norm = self._pipeline.latent_norm
        return (patchify(latents) - norm.shift) / norm.scale

    def _painted(self, request: EngineRequest) -> Tensor | None:
        """Weights of the mask for each latent: the greatest of its pixels, so that a thin line acts."""
        mask = _source(request).mask
        if mask is None:
            return None
        weights = self._bytes(mask, 1, request.height, request.width).float() / 255
        latents = F.max_pool2d(weights, self._pipeline.vae.config.scale_factor)
        return patchify(latents.expand(self._pipeline.vae.config.latent_channels, -1, -1))

    def _to_rgb(self, pixels: Tensor, request: EngineRequest) -> bytes | FloatingPointError:
        """Pixels (3, h, w) in [-1, 1] to bytes; where a mask keeps the source, its pixels."""
        if not pixels.isfinite().all():
            return FloatingPointError("the pixels are not finite")
        rgb = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        mask = request.source and request.source.mask
        return to_bytes(self._composite(rgb, mask, request) if mask else rgb)

    def _composite(self, rgb: Tensor, mask: bytes, request: EngineRequest) -> Tensor:
        """Blend by the mask in integers: exact where it is 0 or 255."""
        height, width, _ = rgb.shape
        painted = self._bytes(mask, height, width, 1).int()
        kept = self._bytes(_source(request).rgb, height, width, 3).int()
        return ((rgb.int() * painted + kept * (255 - painted) + 127) // 255).to(torch.uint8)

    def _bytes(self, data: bytes, *shape: int) -> Tensor:
        """The bytes as uint8 on the device."""
        return self._device.send(torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape))


def patchify(latents: Tensor) -> Tensor:
    """(c, 2 * rows, 2 * columns) -> tokens (rows * columns, 4 * c), row-major, a patch's pixels outermost."""
    patches = latents.unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH))  # (c, rows, 2, columns, 2)
    return patches.permute(1, 3, 2, 4, 0).flatten(0, 1).flatten(1)


def unpatchify(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of `patchify`."""
    patches = tokens.view(rows, columns, PATCH, PATCH, -1)
    return patches.permute(4, 0, 2, 1, 3).reshape(-1, rows * PATCH, columns * PATCH)


def to_bytes(pixels: Tensor) -> bytes:
    """uint8 pixels (h, w, 3) as bytes."""
    data: bytes = pixels.contiguous().cpu().numpy().tobytes()
    return data


def _source(request: EngineRequest) -> SourceImage:
    assert request.source is not None, "the request has no source"
    return request.source
