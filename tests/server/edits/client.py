"""A client of `/v1/images/edits`."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from server.edits import decoder
from tests.server.edits.pictures import encoded, halves
from tests.server.process import ServerProcess

EDITS = "/v1/images/edits"


def edit(
    server: ServerProcess,
    image: bytes | None = None,
    mask: bytes | None = None,
    headers: dict[str, str] | None = None,
    path: str = EDITS,
    **fields: Any,
) -> httpx.Response:
    """POST an edit of `halves()` unless an image is given; its seed is 5."""
    files = {"image": ("a.png", encoded(halves()) if image is None else image)}
    files |= {} if mask is None else {"mask": ("mask.png", mask)}
    form = {"prompt": "a cat", "seed": "5", "feather": "0", **fields}
    return server.http.post(path, files=files, data=form, headers=headers)


def made(response: httpx.Response) -> Image.Image:
    """The image of a response to `Accept: image/png`."""
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content)).convert("RGB")


def refused(
    response: httpx.Response, param: str | None, code: str = "invalid_image", status: int = 400
) -> str:
    assert response.status_code == status, response.text[:500]
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    message: str = error["message"]
    return message


def source_of(server: ServerProcess) -> dict[str, Any]:
    """What the engine received last."""
    request: dict[str, Any] = server.state()["requests"][-1]
    source: dict[str, Any] = request["source"]
    return {**source, "size": (request["width"], request["height"])}


def decoders(server: ServerProcess) -> list[int]:
    """Process ids of its decoders."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_child = f"PPid:\t{server.process.pid}\n" in (folder / "status").read_text()
            if is_child and decoder.__name__ in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held; 0 if it is gone."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) << 10
    return 0
