"""Flags, environment variables, --help and startup failures."""

import errno
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from server.settings.config_error import ConfigError
from server.settings.secrets import read_token
from server.settings.settings import Settings, read_settings
from server.transport.server import listen
from tests.server.forked_program import run_module
from tests.server.process import HANG, ServerProcess

Start = Callable[..., ServerProcess]


def run(*flags: str, module: str = "server", **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_module(module, *flags, env=environment)


def test_flags_win_over_environment_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDEOSERVE_MODEL", "m")
    monkeypatch.setenv("IDEOSERVE_PORT", "1")
    monkeypatch.setenv("IDEOSERVE_LOG_PROMPTS", "true")
    settings = read_settings(["--port", "2", "--devices", "cuda:0, cuda:1", "--no-log-prompts"])
    assert (settings.model, settings.port, settings.log_prompts) == ("m", 2, False)
    assert settings.device_list == ("cuda:0", "cuda:1")
    assert settings.max_backlog_seconds == 120
    assert read_settings(["--device", "cpu"]).device_list == ("cpu",)
    assert read_settings([]).log_prompts is True


def test_help_states_every_setting_with_its_default() -> None:
    text = " ".join(run("--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert " ".join((field.description or "").split())[:40] in text
    assert "TCP port; 0 selects a free port (0 to 65535; default 8000)" in text
    assert "--dtype {float32,bfloat16}" in text
    assert "(above 0, at most 1; default 0.5)" in text


def test_model_aliases_are_a_list() -> None:
    assert Settings(model="m").model_aliases == ()
    assert read_settings(["--model", "m", "--model-alias", "dall-e-3, gpt-image-1,"]).model_aliases == (
        "dall-e-3",
        "gpt-image-1",
    )


def test_pins_of_kernels_are_a_list_of_pairs() -> None:
    settings = read_settings(["--model", "m", "--kernels", "attention.64.short=native, norm=torch"])
    assert settings.kernel_pins == (("attention.64.short", "native"), ("norm", "torch"))
    assert Settings(model="m").kernel_pins == ()


SECRETS = (
    "magic_prompt_key",
    "hive_key",
    "moderation_webhook_key",
    "c2pa_key",
    "webhook_secret",
    "url_secret",
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_no_flag_and_prints_as_asterisks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every user of the machine can read flags."""
    with pytest.raises(SystemExit):
        read_settings(["--model", "m", "--" + name.replace("_", "-"), "hush"])
    monkeypatch.setenv(f"IDEOSERVE_{name.upper()}", "hush")
    settings = read_settings(["--model", "m"])
    assert getattr(settings, name).get_secret_value() == "hush"
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--port", "70000"), "--port: Input should be less than or equal to 65535"),
        (("--kernels", "attention=native,norm"), "--kernels: norm is not NAME=CANDIDATE"),
        (("--dtype", "int8"), "--dtype: Input should be 'float32' or 'bfloat16'"),
        (("--max-backlog-seconds", "nan"), "--max-backlog-seconds: Input should be a finite number"),
        (
            ("--max-inflight-body-bytes", "2048"),
            "--max-inflight-body-bytes: must be at least max_body_bytes",
        ),
        (
            ("--weights", "widened", "--quantize", "fp8"),
            "--quantize: does not go with weights widened, which undoes it",
        ),
        (("--quantize", "nf4", "--matmul", "fp8"), "--matmul: fp8 needs fp8 weights, not quantize nf4"),
        ((), "--model or IDEOSERVE_MODEL is required"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_2(flags: tuple[str, ...], said: str) -> None:
    result = run(*(("--model", "x", *flags) if flags else ()))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"ideoserve: {said}\n"


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name != "hive_ignore"])
def test_an_empty_value_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Such as an unset variable of a deployment, which must not turn a protection off."""
    monkeypatch.setenv("IDEOSERVE_MODEL", "m")
    for empty in ("", " \n"):
        monkeypatch.setenv(f"IDEOSERVE_{name.upper()}", empty)
        with pytest.raises(SystemExit) as exit:
            read_settings([])
        assert exit.value.code == 2
        said = capsys.readouterr().err
        assert said == f"ideoserve: IDEOSERVE_{name.upper()}: the value is empty; leave it out instead\n"


def test_an_empty_hive_ignore_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDEOSERVE_HIVE_IGNORE", "")
    assert read_settings(["--model", "m"]).hive_ignore == ""


@pytest.mark.parametrize("text", ["", " \n", "two\nlines", "a\x00b", "hüsh", "\ufeffhush"])
def test_a_secret_that_is_not_valid_in_a_header(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    for arguments in ((file, None), (None, SecretStr(text))):
        with pytest.raises(ConfigError, match=r"^--a-key-file: ") as failure:
            read_token("--a-key-file", *arguments)
        assert "hush" not in str(failure.value)


def test_white_space_around_a_secret_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(" hush\r\n")
    for arguments in ((file, None), (None, SecretStr(" hush\n"))):
        token = read_token("--a-key-file", *arguments)
        assert token is not None
        assert token.get_secret_value() == "hush"


def test_a_bad_variable_is_named() -> None:
    """Unless a flag overrides it."""
    result = run("--model", "x", IDEOSERVE_PORT="many")
    assert result.returncode == 2
    assert result.stderr.startswith("ideoserve: IDEOSERVE_PORT: Input should be a valid integer")
    assert len(result.stderr.splitlines()) == 1
    result = run("--model", "x", "--port", "few", IDEOSERVE_PORT="many")
    assert result.stderr.startswith("ideoserve: --port: Input should be a valid integer")


def test_a_service_link_variable_is_explained() -> None:
    """Kubernetes sets it in the pods of a namespace with a Service named `ideoserve`."""
    result = run("--model", "x", IDEOSERVE_PORT="tcp://10.96.0.7:80")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    for part in (
        "IDEOSERVE_PORT: tcp://10.96.0.7:80",
        "Service named ideoserve",
        "enableServiceLinks: false",
    ):
        assert part in result.stderr
    assert read_settings(["--model", "x", "--port", "80"]).port == 80


@pytest.mark.parametrize(
    "origins",
    ["https://a.example/", "a.example", "https://a.example/x", "HTTPS://A.example", "https://*.example"],
)
def test_an_origin_that_no_browser_sends(origins: str) -> None:
    result = run("--model", "x", "--cors-origins", f"https://b.example,{origins}")
    assert result.returncode == 2
    assert f"--cors-origins: {origins} is not an origin" in result.stderr


def test_no_checkpoint_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run("--model", str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert str(tmp_path) in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_failed_download_is_one_line_and_exit_code_2() -> None:
    result = run("--model", "nobody/nothing", HF_HUB_OFFLINE="1", HF_HOME="/nonexistent")
    assert result.returncode == 2
    *logged, said = result.stderr.splitlines()
    assert said.startswith("ideoserve: nobody/nothing: ")
    assert all(line.startswith("{") for line in logged)


def test_the_ipv6_wildcard_serves_both_families(start: Start) -> None:
    server = start("--host", "::")
    assert server.url == f"http://[::]:{server.port}"
    for host in ("[::1]", "127.0.0.1", "[::]"):
        assert httpx.get(f"http://{host}:{server.port}/healthz", timeout=HANG).status_code == 200


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_one_line(host: str) -> None:
    result = run("--model", "x", "--host", host)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"ideoserve: --host {host}")
    assert len(result.stderr.splitlines()) == 1


def test_the_ipv6_wildcard_serves_ipv4_where_ipv6_is_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def without_ipv6(address: Any, *, family: int, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(address, family=family, **options)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    (listening,) = listen(Settings(model="unused", host="::", port=0))
    with listening:
        assert listening.getsockname()[0] == "0.0.0.0"


def test_connections_send_without_delay() -> None:
    (listening,) = listen(Settings(model="unused", host="127.0.0.1", port=0))
    with listening, socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["::", "127.0.0.1"])
def test_a_port_in_use_is_one_line(start: Start, host: str) -> None:
    port = str(start("--host", host).port)
    with pytest.raises(RuntimeError, match="ddress already in use"):
        start("--host", host, "--port", port)


def test_it_listens_on_ipv6(start: Start) -> None:
    server = start("--host", "::1")
    assert server.url.startswith("http://[::1]:")
    assert server.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(("value", "wanted"), [("auto", "auto"), ("true", True), ("off", False)])
def test_compile_takes_auto_or_a_boolean(value: str, wanted: bool | str) -> None:
    assert read_settings(["--model", "m", "--compile", value]).compile == wanted


def test_a_wrong_value_of_compile_names_all_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--model", "m", "--compile", "maybe"])
    assert capsys.readouterr().err == "ideoserve: --compile: must be auto, true or false\n"


def test_the_memory_for_uploads_holds_the_largest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--model", "m", "--max-inflight-upload-bytes", "2048"])
    said = "ideoserve: --max-inflight-upload-bytes: must be at least max_upload_bytes\n"
    assert capsys.readouterr().err == said
    assert read_settings(["--model", "m", "--edits", "off"]).edits == "off"
