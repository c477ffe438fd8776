"""The kernels of the demo model: measured, kept, pinned, applied and refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoint.loader import Pipeline, load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_configs import PartConfigs
from engine.errors import OptionError
from engine.kernels.attention import Attend, in_float32, native
from engine.kernels.linear import PrepackedLinear
from engine.kernels.norm import RMSNorm, by_vector_norm
from engine.kernels.rotary import NormRotary, in_halves
from engine.precision import Precision, PrecisionOptions
from engine.runner.model_runner import ModelRunner
from engine.tuning import arithmetic, tuner
from engine.tuning.arithmetic import Arithmetic, choose_arithmetic
from engine.tuning.cases import OPERATIONS
from engine.tuning.pins import check_operations
from engine.tuning.store import ChoiceStore
from engine.tuning.tuner import load_tuned, tune

DEMO = Path(__file__).parents[3] / "models" / "demo"
CONFIG = ModelConfig.load(DEMO)
CPU = torch.device("cpu")
NOTHING = ChoiceStore(None)


def load(dtype: torch.dtype = torch.float32) -> Pipeline:
    return load_pipeline(CONFIG.folders, "cpu", dtype)


def parts(pipeline: Pipeline) -> list[nn.Module]:
    return [pipeline.conditional, pipeline.unconditional, pipeline.text_encoder]


def layers(pipeline: Pipeline, kind: type[nn.Module]) -> list[nn.Module]:
    return [layer for part in parts(pipeline) for layer in part.modules() if type(layer) is kind]


@pytest.fixture
def fake_race(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The last candidate of every case wins; the list grows by one number per race."""
    races: list[int] = []

    def race(runs: dict[str, object], *_: object) -> dict[str, float]:
        races.append(len(runs))
        return {name: 1.0 / (rank + 1) for rank, name in enumerate(runs)}

    monkeypatch.setattr(tuner, "race", race)
    return races


def test_winners_are_applied_logged_and_kept(tmp_path: Path, fake_race: list[int]) -> None:
    pipeline, store = load(), ChoiceStore(tmp_path)
    tuning = tune(pipeline, CONFIG, (), store)
    assert all(layer.kernel is by_vector_norm for layer in layers(pipeline, RMSNorm))  # type: ignore[union-attr]
    assert all(layer.kernel is in_halves for layer in layers(pipeline, NormRotary))  # type: ignore[union-attr]
    assert not layers(pipeline, nn.Linear)
    assert layers(pipeline, PrepackedLinear)
    fields = tuning.fields()
    assert (fields["dtype"], fields["measured"]) == ("float32", "now")
    assert fields["kernels"]["norm.128"] == "vector +100%"  # type: ignore[index]
    assert fields["kernels"]["attention.32.long"] == "products +100%"  # type: ignore[index]
    before = len(fake_race)
    again = tune(load(), CONFIG, (), store)
    assert (len(fake_race), again.choices) == (before, tuning.choices)
    assert again.fields()["measured"] == "earlier"


def test_each_dtype_is_measured(tmp_path: Path, fake_race: list[int]) -> None:
    store = ChoiceStore(tmp_path)
    tune(load(), CONFIG, (), store)
    assert not tune(load(torch.bfloat16), CONFIG, (), store).is_kept


@pytest.mark.usefixtures("fake_race")
def test_pins_are_not_measured_and_the_longest_name_counts() -> None:
    pipeline = load(torch.bfloat16)
    pins = (
        ("attention.32.short", "native"),
        ("attention", "float32"),
        ("causal_attention", "native"),
        ("linear", "plain"),
        ("linear.128x128", "prepacked"),
    )
    tuning = tune(pipeline, CONFIG, pins, NOTHING)
    attend = next(each for each in layers(pipeline, Attend) if not each.causal)  # type: ignore[union-attr]
    assert isinstance(attend, Attend)
    assert attend.kernels == {"tiny": in_float32, "short": native, "medium": in_float32, "long": in_float32}
    assert set(tuning.choices) & {"attention.32.short", "linear.128x384"} == set()
    assert tuning.fields()["kernels"]["attention.32.long"] == "float32 pinned"  # type: ignore[index]
    prepacked = [layer.weight.shape for layer in layers(pipeline, PrepackedLinear)]  # type: ignore[union-attr]
    assert set(prepacked) == {(128, 128)}


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        (("atention", "native"), "kernels: atention is not one of attention, causal_attention, feed_forward"),
        (
            ("attention", "fast"),
            "kernels: attention=fast: the candidates are native, float32, products, batched",
        ),
    ],
)
def test_an_unknown_pin_is_refused_before_the_model_is_loaded(pin: tuple[str, str], said: str) -> None:
    with pytest.raises(OptionError) as error:
        check_operations([pin])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        (
            ("attention.64", "native"),
            "kernels: attention.64 fits no operation of this model; there are attention.",
        ),
        (
            ("attention", "cudnn"),
            "kernels: attention=cudnn is not available for this machine and dtype: native,",
        ),
        (("attention", "float32"), "kernels: attention=float32 is not available for this machine and dtype:"),
        (("attention.32.long", "batched"), "kernels: attention.32.long=batched is not available"),
    ],
)
def test_a_pin_that_this_model_or_machine_does_not_have_is_refused(pin: tuple[str, str], said: str) -> None:
    with pytest.raises(OptionError) as error:
        tune(load(), CONFIG, (pin,), NOTHING)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_pin_of_an_operation_leaves_shapes_that_lack_the_candidate_to_the_measurement(
    fake_race: list[int],
) -> None:
    tuning = tune(load(), CONFIG, (("attention", "batched"),), NOTHING)
    assert {tuning.pins[f"attention.32.{length}"] for length in ("tiny", "short")} == {"batched"}
    assert tuning.choices["attention.32.long"] == "products"


def test_every_candidate_of_the_demo_model_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, but for each run only a few times."""
    monkeypatch.setattr(tuner, "_SECONDS", 0.0)
    tuning = tune(load(torch.bfloat16), CONFIG, (("attention.32.long", "products"),), NOTHING)
    assert {key.partition(".")[0] for key in tuning.choices} == set(OPERATIONS) - {"nf4_linear"}


def test_the_model_is_loaded_in_the_precision_of_the_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setattr(tuner, "_SECONDS", 0.0)
    options = EngineOptions(dtype="float32", precision=PrecisionOptions(matmul="fp8", quantize="fp8"))
    pipeline, _ = load_tuned(CONFIG, options, CPU)
    assert ModelRunner(pipeline, CPU).precision == Precision("fp8", False, "fp8", "float32")


def arithmetic_of(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, float], asked: str | None = None
) -> Arithmetic:
    """The choice where a block takes these times, on a processor with bfloat16 and four threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(arithmetic, "race", lambda runs, _: {name: times.get(name, 1.0) for name in runs})
    config = PartConfigs.read(CONFIG.folders).transformer
    return choose_arithmetic(CPU, asked, config, 94, NOTHING)


@pytest.mark.parametrize(
    ("times", "asked", "expected"),
    [
        ({"bfloat16, 2 threads": 2.0, "bfloat16, 1 threads": 2.0}, None, Arithmetic(torch.bfloat16, 4)),
        ({"bfloat16, 1 threads": 1.02}, None, Arithmetic(torch.bfloat16, 1)),
        ({"float32, 4 threads": 0.99}, None, Arithmetic(torch.bfloat16, 1)),
        ({"float32, 2 threads": 0.5}, None, Arithmetic(torch.float32, 2)),
        ({"float32, 2 threads": 0.5}, "bfloat16", Arithmetic(torch.bfloat16, 1)),
        ({"float32, 2 threads": 0.5}, "float32", Arithmetic(torch.float32, 2)),
    ],
)
def test_dtype_and_threads(
    monkeypatch: pytest.MonkeyPatch, times: dict[str, float], asked: str | None, expected: Arithmetic
) -> None:
    assert arithmetic_of(monkeypatch, times, asked) == expected


def test_a_large_model_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "LARGE_BLOCK", 1)
    chosen = arithmetic_of(monkeypatch, {"float32, 1 threads": 0.1})
    assert chosen == Arithmetic(torch.bfloat16, 4)


def test_omp_num_threads_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(arithmetic, "race", lambda runs, _: dict.fromkeys(runs, 1.0))
    chosen = choose_arithmetic(CPU, None, PartConfigs.read(CONFIG.folders).transformer, 94, NOTHING)
    assert chosen == Arithmetic(torch.bfloat16, torch.get_num_threads())


def test_a_block_is_measured_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_SECONDS", 0.0)
    before = torch.get_num_threads()
    chosen = choose_arithmetic(CPU, None, PartConfigs.read(CONFIG.folders).transformer, 94, NOTHING)
    assert 1 <= chosen.threads <= before
    assert torch.get_num_threads() == before
