"""Compiled blocks apply adapters between their compiled parts."""

import torch
from torch import Tensor

from engine.adapters.adapter import Adapter, blank_adapter
from engine.kernels.packing import Packing
from engine.models.dit import DiT, compile_parts
from engine.models.low_rank import BatchUpdates
from tests.engine.adapters.test_adapter_file import CONFIG


def random_adapter(dit: DiT) -> Adapter:
    return blank_adapter(dit, 2).map(lambda _, tensor: torch.randn_like(tensor) / 4)


@torch.inference_mode()
def test_compiled_blocks_apply_adapters() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    dit = DiT(CONFIG).eval()
    first, second = (random_adapter(dit).conditional for _ in range(2))
    batch = [((first, 0.5),), (), ((first, 1.0), (second, -1.0))]
    text_lens, image_lens = [3, 5, 4], [4, 4, 4]
    packing = Packing.build(text_lens, image_lens, "cpu")
    text = [torch.randn(length, CONFIG.hidden_size) for length in text_lens]
    rotary = torch.cat([dit.rotary(length, 2, 2) for length in text_lens], dim=1)
    latents, modulation = torch.randn(12, CONFIG.in_channels), dit.modulate(torch.tensor([0.1, 0.5, 0.9]))

    def velocity(updates: BatchUpdates | None) -> Tensor:
        return dit(latents, text, modulation, rotary, packing, updates)

    dit.embed_image_indicator.weight.zero_()
    updates = BatchUpdates.of(batch)
    adapted = velocity(updates)
    assert (adapted - velocity(None)).abs().max() > 0.1
    dit.parts = compile_parts(backend="eager")
    torch.testing.assert_close(velocity(updates), adapted, atol=1e-5, rtol=1e-5)
