"""Compares the engine with stored outputs of the published implementation.

They are too large for this repository: see `REFERENCE` in conftest. Without that folder this file is not
collected; `test_parity` compares the same stages with modules of diffusers.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from engine.client.tokenizer import Tokenizer
from engine.config.model_config import PUBLISHED_PRESETS
from engine.models.resumable import drain
from engine.request import EngineRequest
from engine.runner.request_state import RequestState
from tests.engine.conftest import REFERENCE, finish, load_runner, rgb


@dataclass(frozen=True)
class Golden:
    name: str
    checkpoint: str
    prompt: str
    width: int
    height: int
    preset: str
    seed: int


POSTER = 'a poster that says "HELLO" in red letters'
FOX = (
    '{"high_level_description":"A blue fox.","compositional_deconstruction":{"background":"snow",'
    '"elements":[{"type":"obj","bbox":[100,200,900,800],"desc":"a blue fox"}]}}'
)
GOLDENS = (
    Golden("official-1", "official", POSTER, 256, 256, "V4_TURBO_12", 5),
    Golden("official-2", "official", FOX, 320, 272, "V4_DEFAULT_20", 6),
    Golden("official-fp8-1", "official-fp8", POSTER, 256, 256, "V4_TURBO_12", 5),
    Golden("official-nf4-1", "official-nf4", POSTER, 256, 256, "V4_TURBO_12", 5),
)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: str(golden.name))
def test_golden(golden: Golden) -> None:
    runner = load_runner(REFERENCE / golden.checkpoint, torch.float32)
    request = _request(golden)
    expected = np.load(REFERENCE / f"{golden.name}.npz")
    features = runner.pipeline.text_encoder(request.token_ids).numpy(force=True)
    np.testing.assert_allclose(features, expected["features"][: len(features)], atol=1e-5)
    state = RequestState(request)
    (state.conditioning,) = drain(runner.encode([request]))
    assert float(state.conditioning.times[0]) == pytest.approx(float(expected["t0"].item()), abs=1e-7)
    sample = finish(runner, runner.new_sample(state, 0))
    np.testing.assert_allclose(sample.latents.numpy(), expected["latents"][0], atol=1e-3)
    with Image.open(REFERENCE / f"{golden.name}.png") as image:
        difference = np.abs(rgb(runner, sample) - np.asarray(image.convert("RGB"), np.int64))
    assert difference.max() <= 2
    assert difference.mean() < 0.02


def _request(golden: Golden) -> EngineRequest:
    preset = PUBLISHED_PRESETS[golden.preset]
    tokenizer = Tokenizer(REFERENCE / golden.checkpoint / "tokenizer", max_tokens=2048)
    return EngineRequest(
        request_id=golden.name,
        token_ids=tokenizer.encode(golden.prompt),
        width=golden.width,
        height=golden.height,
        seeds=(golden.seed,),
        sampling=preset,
    )
