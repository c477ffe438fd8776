"""The counted work of the published model, compared with torch's counter on `meta`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import load_rate, roofline, work
from benchmarks.report import read
from engine.kernels.packing import Packing
from engine.models.dit import DiT
from engine.models.text_encoder import TextEncoder
from engine.models.vae import VAE

PROMPT, SIDE = 300, 1024
CONFIGS = work.PUBLISHED


def counted(run: Callable[[], object]) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.fixture(scope="module")
def dit() -> DiT:
    with torch.device("meta"):
        return DiT(CONFIGS.transformer)


def forward(dit: DiT, prompt: int) -> int:
    rows, config = SIDE // 16, dit.config
    with torch.device("meta"), torch.inference_mode():
        text = [torch.empty(prompt, config.hidden_size)] if prompt else []
        latents, rotary = torch.empty(rows * rows, config.in_channels), dit.rotary(prompt, rows, rows, "meta")
        modulation = dit.modulate(torch.empty(1))
    packing = Packing.build([prompt], [rows * rows], "meta")
    return counted(lambda: dit(latents, text, modulation, rotary, packing))


def test_a_step(dit: DiT) -> None:
    step = work.step(CONFIGS, work.tokens(SIDE), PROMPT)
    assert step.flops == pytest.approx(forward(dit, PROMPT) + forward(dit, 0), rel=0.01)
    assert step.weights == pytest.approx(2 * 8.66e9, rel=0.01), "of the blocks of both transformers"


def test_an_encode(dit: DiT) -> None:
    with torch.device("meta"):
        encoder = TextEncoder(CONFIGS.text_encoder).requires_grad_(False)
    run = counted(lambda: dit.project_text(encoder([0] * PROMPT)))
    assert work.encode(CONFIGS, PROMPT).flops == pytest.approx(run, rel=0.01)


def test_the_modulation(dit: DiT) -> None:
    times = torch.empty(12, device="meta")
    assert work.modulate(CONFIGS, 12).flops == pytest.approx(counted(lambda: dit.modulate(times)), rel=0.01)


@pytest.mark.parametrize("latents", [64, 256])
def test_a_decode(latents: int) -> None:
    with torch.device("meta"):
        vae, z = VAE(CONFIGS.vae), torch.empty(1, CONFIGS.vae.latent_channels, latents, latents)
    run = counted(lambda: vae.decode(z))
    overlap = 0.03 if latents > 128 else 0.01  # strips compute the rows at their edges twice
    assert work.decode(CONFIGS.vae, latents**2).flops == pytest.approx(run, rel=overlap)


def test_the_work_of_a_step_at_1024_pixels() -> None:
    """By hand, with all tokens in the last block: 149 TFLOP of matrix products, and 22 of attention."""
    step = work.step(CONFIGS, work.tokens(1024), 100)
    assert step.products / 1e12 == pytest.approx(149, rel=0.05)
    assert step.others / 1e12 == pytest.approx(22, rel=0.05)


def test_no_measurement_beats_its_bound() -> None:
    rows = list(roofline.measured_rows())
    assert rows
    assert all(0 < row["share"] < 1 for row in rows)
    assert [row["share"] for row in rows if row["side"] == 1024] == [pytest.approx(roofline.SHARE, rel=0.03)]
    assert all(0 < row["share"] < 1 for row in roofline.published_rows())


def test_the_prediction_is_the_measurement_on_the_measured_gpu() -> None:
    (row,) = (row for row in roofline.prediction_rows() if (row["gpu"], row["side"]) == ("H100 SXM", 1024))
    assert row["step, ms"] == pytest.approx(284, rel=0.05)
    assert row["V4_TURBO_12"] == pytest.approx(3.6, rel=0.05)


def test_weights_are_loaded_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "loads.json"
    arguments = [
        "load_rate",
        "--small",
        "--parts",
        "transformer,vae",
        "--dir",
        str(tmp_path),
        "--json",
        str(file),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    load_rate.main()
    rows: list[dict[str, Any]] = read(file)["tables"]["loads"]
    assert [(row["part"], row["cache"]) for row in rows] == [
        (part, cache) for part in ("transformer", "vae") for cache in ("cold", "warm")
    ]
    assert all(row["GB/s"] > 0 and row["read, GB/s"] > 0 for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["loads.json"], "the checkpoint is deleted"
