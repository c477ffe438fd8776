"""Run the tests and benchmarks of a GPU within a limited time: `make gpu`, or `python -m benchmarks.gpu`.

Stages run in order of worth. A stage starts only if its expected seconds fit in the time left, and runs in a
process of its own. The results file is replaced after every stage. A stage that fails or exceeds its limit is
recorded with its error, and the next one runs.

With --done, stages that an earlier results file holds are not repeated, and those that failed run last. A
result counts only for the same card, version of torch, command, and source code of the packages that the
stage measures.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest.mock import patch

from benchmarks.report import ROOT, Row, machine, read, say, several, write
from engine.environment import set_up_environment

TAIL = 3000  # characters of a stage's output that are kept if it fails
IMAGE_SIZES = (256, 512, 1024, 2048)
FP8_SIZES = (512, 1024, 2048)


@dataclass(frozen=True)
class Stage:
    """`command` are the arguments of Python, to which a small run adds `small`. `seconds` are expected on an
    H100, with the start of the process. `code`: the packages whose changes make a result stale."""

    name: str
    seconds: int
    command: tuple[str, ...]
    small: tuple[str, ...]
    code: tuple[str, ...] = ("engine",)
    writes_json: bool = True

    @property
    def limit(self) -> float:
        """Seconds after which the stage is killed."""
        return 2.0 * self.seconds + 30


def pytest_stage(name: str, seconds: int, file: str) -> Stage:
    """A stage that runs a test file, or in a small run collects its tests."""
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", file)
    return Stage(name, seconds, command, ("--collect-only",), ("engine", "server", "tests"), False)


def published(name: str, seconds: int, variant: str, *flags: str) -> Stage:
    """A stage of `benchmarks.published`."""
    command = ("-m", "benchmarks.published", "--variant", variant, *flags)
    sides = ("--batch-sizes" if "--batch-sizes" in flags else "--sizes", "64")
    small = ("--model-size", "small", "--steps", "2", "--rounds", "1", *sides)
    return Stage(name, seconds, command, small, ("engine",) if variant.startswith("ours") else ())


def sizes(*sides: int) -> tuple[str, str]:
    return ("--sizes", ",".join(map(str, sides)))


# In order of worth.
STAGES = (
    pytest_stage("tests-engine", 120, "tests/cuda/test_engine.py"),
    pytest_stage("tests-server", 120, "tests/cuda/test_server.py"),
    published("images", 110, "ours, compiled", *sizes(*IMAGE_SIZES)),
    pytest_stage("tests-precision", 60, "tests/cuda/test_precision.py"),
    published("diffusers-compiled", 150, "diffusers, compiled", *sizes(*IMAGE_SIZES)),
    published("diffusers", 130, "diffusers", *sizes(*IMAGE_SIZES)),
    published("fp8-products", 75, "ours, fp8 products", *sizes(*FP8_SIZES)),
    published("fp8-widened", 75, "ours, fp8 widened", *sizes(*FP8_SIZES)),
    published("fp8-stored", 75, "ours, fp8 stored", *sizes(*FP8_SIZES)),
    published("batches", 75, "ours, compiled", "--sizes", "", "--batch-sizes", "256,512"),
    published("graphs", 60, "ours, graphs", *sizes(256, 512)),
    Stage("load-rate", 50, ("-m", "benchmarks.load_rate", "--parts", "transformer"), ("--small",)),
    Stage("start-to-ready", 60, ("-m", "benchmarks.ready"), ("--rounds", "1"), ("engine", "server")),
    published("images-plain", 90, "ours", *sizes(*IMAGE_SIZES)),
)


def key(stage: Stage, command: Sequence[str], where: Row) -> Row:
    """What a result depends on."""
    return {
        "device": where["card"] or where["processor"],
        "torch": where["torch"],
        "command": list(command),
        "code": digest(stage.code),
    }


def digest(packages: Sequence[str]) -> str:
    """Hash of the Python files of these packages; works without a repository."""
    total = hashlib.sha256()
    for file in sorted(file for package in packages for file in (ROOT / package).rglob("*.py")):
        total.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def command_of(stage: Stage, small: bool) -> list[str]:
    return [*stage.command, *(stage.small if small else ())]


def execute(stage: Stage, command: Sequence[str], limit: float, small: bool = False) -> Row:
    """Run a stage in a process group of its own and return its result."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", errors="replace") as log:
        file = Path(folder) / "report.json"
        where = ("--json", str(file)) if stage.writes_json else ()
        code = call([sys.executable, *command, *where], limit, log, environment(stage, small))
        log.seek(0)
        printed = log.read().strip()
        report = read(file) if file.exists() else None
    say(printed)
    result: Row = {"seconds": round(time.monotonic() - started, 1), "report": report}
    if code == 0:
        return {"status": "ok", "last_line": printed.rpartition("\n")[2], **result}
    error = f"exit code {code}" if code is not None else f"exceeded {limit:.0f} s"
    return {"status": "failed", "error": error, "output": printed[-TAIL:], **result}


def environment(stage: Stage, small: bool) -> dict[str, str]:
    """The variables of a worker if the stage runs the engine, else those of this process."""
    with patch.dict(os.environ):
        if stage.code:
            set_up_environment()
        # Compilation takes minutes on a CPU.
        return dict(os.environ) | ({"TORCHDYNAMO_DISABLE": "1"} if small else {})


def call(command: Sequence[str], limit: float, log: IO[str], variables: dict[str, str]) -> int | None:
    """Exit code of the command, None if it was killed at its limit."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def still_valid(keys: dict[str, Row], earlier: Row) -> Row:
    """The earlier results that count."""
    return {name: result for name, result in earlier.items() if result["key"] == keys.get(name)}


def planned(stages: Sequence[Stage], results: Row) -> list[Stage]:
    """The stages to run: those without a result, then those that failed."""
    waiting = [stage for stage in stages if results.get(stage.name, {}).get("status") != "ok"]
    return sorted(waiting, key=lambda stage: stage.name in results)


def fitting(stages: Sequence[Stage], left: Callable[[], float]) -> Iterator[Stage]:
    """The stages whose expected seconds are left when their turn comes."""
    for stage in stages:
        if stage.seconds <= left():
            yield stage
        else:
            say(f"{stage.name}: skipped, expected to take {stage.seconds} s of {left():.0f} s left")


def run(stages: Sequence[Stage], options: argparse.Namespace, started: float) -> int:
    """Run the stages and return 1 if one failed."""
    where = machine()
    commands = {stage.name: command_of(stage, options.small) for stage in stages}
    keys = {stage.name: key(stage, commands[stage.name], where) for stage in stages}
    results = still_valid(keys, read(options.done)["stages"]) if options.done else {}
    todo = planned(stages, results)
    say(f"{where['card'] or where['processor']}, torch {where['torch']}, {options.seconds:.0f} s")
    for stage in stages:
        say(f"{stage.name:20} {stage.seconds:4} s  {'to run' if stage in todo else 'done'}")

    def left() -> float:
        return started + options.seconds - time.monotonic()

    def save() -> None:
        write(options.json, {"benchmark": "gpu", "machine": where, "stages": results})

    save()
    for stage in fitting(todo, left):
        say(f"--- {stage.name}: {stage.seconds} s expected, {left():.0f} s left")
        result = execute(stage, commands[stage.name], min(left(), stage.limit), options.small)
        results[stage.name] = {"key": keys[stage.name], **result}
        save()
        say(f"--- {stage.name}: {result['status']} after {result['seconds']} s")
    return int(any(result["status"] != "ok" for result in results.values()))


def dry_run(stages: Sequence[Stage], seconds: float) -> int:
    """List the stages that fit if each takes as long as expected, and build the models on `meta`."""
    from benchmarks.published import SIZES, weight_bytes

    expected: list[int] = []
    for stage in fitting(stages, lambda: seconds - sum(expected)):
        expected.append(stage.seconds)
        say(f"{stage.name:20} {stage.seconds:4} s  python {' '.join(stage.command)}")
    for variant in ("ours", "diffusers"):
        say(f"{variant}: {weight_bytes(variant, SIZES['published']) / 1e9:.1f} GB of weights")
    return 0


def parser() -> argparse.ArgumentParser:
    names = [stage.name for stage in STAGES]
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--seconds", type=float, default=540, help="time for all stages (default 540)")
    made.add_argument("--json", type=Path, metavar="FILE", default=Path("gpu.json"), help="results file")
    made.add_argument("--done", type=Path, metavar="FILE", help="results file to continue from")
    made.add_argument("--stages", type=several(str), default=names, help=f"of {','.join(names)}")
    made.add_argument("--dry-run", action="store_true", help="list the stages, build the models on meta")
    made.add_argument("--small", action="store_true", help="run the stages on a CPU with a tiny model")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = parser().parse_args(arguments)
    by_name = {stage.name: stage for stage in STAGES}
    if unknown := set(options.stages) - by_name.keys():
        raise SystemExit(f"--stages: {', '.join(unknown)} must be of {', '.join(by_name)}")
    stages = [by_name[name] for name in by_name if name in options.stages]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # kills the running stage
    return dry_run(stages, options.seconds) if options.dry_run else run(stages, options, started)


if __name__ == "__main__":
    sys.exit(main())
