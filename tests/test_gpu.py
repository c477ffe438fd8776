"""`make gpu`: the order, time and results of its stages, and the stages themselves with a tiny model."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, published
from benchmarks.gpu import Stage
from benchmarks.report import Row, read
from tests.server.process import until

Stages = Callable[..., None]


def stage(name: str, script: str = "print('fine')", seconds: int = 1, code: tuple[str, ...] = ()) -> Stage:
    return Stage(name, seconds, ("-c", script), (), code, writes_json=False)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Replaces the stages."""
    return lambda *made: monkeypatch.setattr(gpu, "STAGES", made)


def run(folder: Path, *flags: str, code: int = 0) -> Row:
    """Run `make gpu` and return the stages of its results file."""
    assert gpu.main(["--json", str(folder / "gpu.json"), *flags]) == code
    results: Row = read(folder / "gpu.json")["stages"]
    return results


def test_a_dry_run_lists_what_fits_and_builds_both_models(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--dry-run", "--seconds", "400"])
    printed = capsys.readouterr().out
    assert "images                110 s  python -m benchmarks.published --variant ours, compiled" in printed
    assert "diffusers-compiled: skipped, expected to take 150 s of 50 s left" in printed
    assert [line.split(" GB")[0] for line in printed.splitlines()[-2:]] == ["ours: 52.4", "diffusers: 52.4"]


def test_all_stages_fit_in_three_leases() -> None:
    assert sum(stage.seconds for stage in gpu.STAGES) <= 3 * 540
    assert len({stage.name for stage in gpu.STAGES}) == len(gpu.STAGES)


def test_a_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    """Of the GPU tests, a small run collects those of the engine."""
    results = run(tmp_path, "--small", "--stages", "tests-engine", "--seconds", "600")
    assert results["tests-engine"]["status"] == "ok"
    assert "tests collected" in results["tests-engine"]["last_line"]


@pytest.mark.parametrize(
    "name",
    [
        "images",
        "batches",
        "graphs",
        "images-plain",
        "fp8-stored",
        "fp8-widened",
        "fp8-products",
        "diffusers",
        "diffusers-compiled",
    ],
)
def test_a_published_stage_measures(name: str, tmp_path: Path) -> None:
    (stage,) = (stage for stage in gpu.STAGES if stage.name == name)
    file = tmp_path / "report.json"
    flags = [*gpu.command_of(stage, small=True)[2:], "--json", str(file)]
    with torch.compiler.set_stance("force_eager"):
        published.measure(published.parser().parse_args(flags))
    tables = read(file)["tables"]
    assert len(tables["batches"]) == (4 if name == "batches" else 0)
    assert [(row["variant"], row["side"]) for row in tables["images"]] == (
        [] if name == "batches" else [(stage.command[3], 64)]
    )


@pytest.mark.parametrize("variant", ["ours", "ours, fp8 widened", "ours, fp8 products"])
def test_the_plan_of_a_variant_has_its_weights(variant: str) -> None:
    sizes = published.SIZES["small"]
    made = published.Builder(sizes, torch.device("meta")).ours()
    if variant in published.FP8:
        published.quantize(made, published.FP8[variant])
    parts = (made.text_encoder, made.conditional, made.unconditional, made.vae)
    weights = sum(weight.nbytes for part in parts for weight in part.parameters())
    assert sum(published.plan_of(sizes, variant).kept.values()) == pytest.approx(weights, rel=0.01)


def test_random_models_are_finite() -> None:
    """The engine leaves embeddings uninitialised."""
    made = published.Builder(published.SIZES["small"], torch.device("cpu")).ours()
    embeddings = [made.text_encoder.language_model.embed_tokens, made.conditional.embed_image_indicator]
    assert all(0 < embedding.weight.abs().max() < 1 for embedding in embeddings)


def test_a_failed_stage_is_recorded_and_the_next_one_runs(tmp_path: Path, stages: Stages) -> None:
    stages(stage("bad", "raise SystemExit('no such kernel')"), stage("good"))
    results = run(tmp_path, code=1)
    assert results["bad"]["status"] == "failed"
    assert results["bad"]["error"] == "exit code 1"
    assert results["bad"]["output"] == "no such kernel"
    assert (results["good"]["status"], results["good"]["last_line"]) == ("ok", "fine")


def test_a_stage_is_killed_at_its_limit_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that it has written are kept."""
    script = """
import pathlib, subprocess, sys
file = pathlib.Path(sys.argv[-1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
part = file.with_suffix(".part")
part.write_text(str(child.pid))
part.rename(file)
child.wait()
"""
    children: list[int] = []
    end = subprocess.Popen.wait

    def wait(process: subprocess.Popen[str], timeout: float | None = None) -> int:
        """The limit is reached as soon as the child runs."""
        if timeout is None:
            return end(process)
        file = Path(process.args[-1])  # type: ignore[index, arg-type]
        until(file.exists)
        children.append(json.loads(file.read_text()))
        raise subprocess.TimeoutExpired("stage", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    hanging = Stage("hanging", 1, ("-c", script), ())
    result = gpu.execute(hanging, hanging.command, limit=32)
    assert (result["status"], result["error"]) == ("failed", "exceeded 32 s")
    assert result["report"] == children[0]
    until(lambda: is_gone(children[0]))


def is_gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_shorter_stage_runs_where_the_next_one_does_not_fit(tmp_path: Path, stages: Stages) -> None:
    stages(stage("first"), stage("long", seconds=1000), stage("short"))
    assert list(run(tmp_path, "--seconds", "300")) == ["first", "short"]


def test_the_next_lease_continues(tmp_path: Path, stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """Stages that succeeded are carried over; those that failed run after those that did not fit."""
    stages(stage("bad", "raise SystemExit(1)"), stage("good"), stage("long", seconds=1000))
    run(tmp_path, "--seconds", "300", code=1)
    capsys.readouterr()
    results = run(tmp_path, "--seconds", "3000", "--done", str(tmp_path / "gpu.json"), code=1)
    assert results.keys() == {"bad", "good", "long"}
    began = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "expected," in line]
    assert began == ["--- long", "--- bad"]


@pytest.mark.parametrize("part", ["device", "torch", "command", "code"])
def test_results_of_something_else_do_not_count(tmp_path: Path, stages: Stages, part: str) -> None:
    stages(stage("measured", code=("engine",)))
    content: Any = {"stages": run(tmp_path)}
    content["stages"]["measured"]["key"][part] = "other"
    content["stages"]["measured"]["seconds"] = -1
    (tmp_path / "done.json").write_text(json.dumps(content))
    results = run(tmp_path, "--done", str(tmp_path / "done.json"))
    assert results["measured"]["seconds"] >= 0


def test_only_changes_of_what_a_stage_measures_make_it_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {packages: gpu.digest(packages) for packages in ((), ("engine",), ("engine", "server"))}
    original = Path.read_bytes
    changed = gpu.ROOT / "server" / "app.py"
    monkeypatch.setattr(Path, "read_bytes", lambda file: original(file) + b"#" * (file == changed))
    after = {packages: gpu.digest(packages) for packages in before}
    assert [before[packages] == after[packages] for packages in before] == [True, True, False]


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"--stages: nonsense must be of tests-engine, "):
        gpu.main(["--stages", "nonsense"])


def test_an_engine_stage_has_the_environment_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert gpu.environment(stage("ours", code=("engine",)), False)["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in gpu.environment(stage("theirs"), False)
