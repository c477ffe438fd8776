"""`ideoserve request`, `generate` and `completion`, as a user runs them."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.server.process import REPOSITORY, ServerProcess

COMMAND = [sys.executable, "-c", "import sys; from server.console import main; sys.exit(main())"]


def run(*argv: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *argv],
        input=stdin,
        env=os.environ | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_image_is_written_in_the_format_of_its_name(server: ServerProcess, tmp_path: Path) -> None:
    output = tmp_path / "a.webp"
    done = run("request", "a cat", "--url", server.url, "-o", str(output), "--seed", "5", "--size", "64x96")
    assert done.stdout == f"{output}  seed 5\n", done.stderr
    with Image.open(output) as image:
        assert (image.format, image.size) == ("WEBP", (64, 96))


def test_several_images_are_numbered(server: ServerProcess, tmp_path: Path) -> None:
    run("request", "a cat", "--url", server.url, "-o", str(tmp_path / "a.png"), "-n", "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.png", "a-2.png"]


def test_the_prompt_is_read_from_stdin_and_other_fields_are_sent(
    server: ServerProcess, tmp_path: Path
) -> None:
    fields = ("--field", "num_inference_steps=3", "--field", "mu=0.5")
    output = str(tmp_path / "a.png")
    done = run("request", "-", "--url", server.url, "-o", output, *fields, stdin="a cat\n")
    assert done.returncode == 0, done.stderr
    sent = server.http.get("/_fake/state").json()["requests"][-1]
    assert (len(sent["sampling"]["guidance_schedule"]), sent["sampling"]["mu"]) == (3, 0.5)


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        (("-o", "{tmp}/a.png", "--size", "65x64"), 1, "ideoserve: size: "),
        (("-o", "{tmp}/a.gif"), 2, "a.gif does not end in .png, .jpg, .jpeg, .webp"),
        (("-o", "{tmp}/none/a.png"), 2, "there is no folder {tmp}/none"),
        (("-o", "{tmp}/a.png", "--field", "mu"), 2, "mu is not NAME=VALUE"),
        (("-o", "{tmp}/a.png", "--url", "http://127.0.0.1:1"), 1, "ideoserve: http://127.0.0.1:1: "),
        (("-o", "{tmp}/a.png", "--url", "nonsense"), 1, "ideoserve: nonsense: "),
    ],
)
def test_a_fault_is_one_line(
    server: ServerProcess, tmp_path: Path, argv: tuple[str, ...], code: int, line: str
) -> None:
    asked = (each.format(tmp=tmp_path) for each in ("--url", server.url, *argv))
    done = run("request", "a cat", *asked)
    assert done.returncode == code
    assert line.format(tmp=tmp_path) in done.stderr.splitlines()[-1]


def test_a_failed_generation_is_reported(server: ServerProcess, tmp_path: Path) -> None:
    done = run("request", "crash: a cat", "--url", server.url, "-o", str(tmp_path / "a.png"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "(worker_crashed)" in done.stderr


def test_the_key_is_read_from_the_environment(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": [{"name": "web", "key": "web-secret"}]}')
    url = start("--api-keys-file", str(keys)).url
    asked = ("request", "a cat", "--url", url, "-o", str(tmp_path / "a.png"))
    assert "(invalid_api_key)" in run(*asked).stderr
    assert run(*asked, IDEOSERVE_API_KEY="web-secret").returncode == 0


def test_a_terminal_shows_progress_and_previews(server: ServerProcess, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    argv = ("request", "a cat", "--url", server.url, "-o", str(tmp_path / "a.png"))
    environment = os.environ | {"COLORTERM": "truecolor", "TERM": "xterm-256color"}
    process = subprocess.Popen([*COMMAND, *argv], stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = b""
    while chunk := read(ours):
        shown += chunk
    process.communicate()
    os.close(ours)
    assert "▀".encode() in shown
    assert b"denoising" in shown


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def accept_interrupts() -> None:
    """Shells start background jobs, such as these tests may be, without."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_cancels_the_request(server: ServerProcess, tmp_path: Path) -> None:
    argv = ("request", "hold: a cat", "--url", server.url, "-o", str(tmp_path / "a.png"))
    process = subprocess.Popen([*COMMAND, *argv], stderr=subprocess.PIPE, preexec_fn=accept_interrupts)
    server.http.get("/_fake/wait", params={"running": 1})
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    server.http.get("/_fake/wait", params={"running": 0})
    assert (process.returncode, errors) == (130, b"")


def test_an_image_is_generated_without_a_server(tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    done = run("generate", "a red circle on a white background", "--model", "models/demo", "-o", str(output))
    assert done.returncode == 0, done.stderr
    with Image.open(output) as image:
        red, green, blue = image.convert("RGB").getpixel((64, 64))  # type: ignore[misc]
    assert red > 150 > max(green, blue)


def test_generate_needs_a_model_that_loads(tmp_path: Path) -> None:
    missing = run("generate", "a cat", "-o", str(tmp_path / "a.png"))
    assert (missing.returncode, missing.stderr.splitlines()[-1]) == (
        2,
        "ideoserve: error: generate: --model or IDEOSERVE_MODEL is required",
    )
    broken = run("generate", "a cat", "-o", str(tmp_path / "a.png"), "--model", str(tmp_path))
    assert broken.returncode == 1
    assert str(tmp_path) in broken.stderr.splitlines()[0]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_with_the_commands_and_flags(shell: str) -> None:
    script = run("completion", shell).stdout
    for word in ("generate", "request", "--previews", "--max-batch-size"):
        assert word in script
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
