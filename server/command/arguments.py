"""The command line of `generate`, `request` and `completion`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from server.settings.flags import parser as serving_parser
from server.settings.settings import Settings

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
DEFAULT_URL = "http://127.0.0.1:8000"
SHELLS = ("bash", "zsh", "tcsh")


def parser() -> argparse.ArgumentParser:
    """All commands. Without one, the flags are those of the server."""
    made = serving_parser(Settings.model_fields)
    made.prog = "ideoserve"
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    generate = commands.add_parser("generate", help="make images here, without a server")
    _add_request(generate)
    generate.add_argument(
        "--model",
        default=os.environ.get("IDEOSERVE_MODEL"),
        help="checkpoint folder or Hugging Face repository (default: IDEOSERVE_MODEL). All IDEOSERVE_* "
        "variables of the server apply",
    )
    request = commands.add_parser("request", help="make images with a running server")
    _add_request(request)
    request.add_argument(
        "--url",
        default=os.environ.get("IDEOSERVE_URL", DEFAULT_URL),
        help=f"address of the server (default: IDEOSERVE_URL or {DEFAULT_URL}). The API key is read from "
        "IDEOSERVE_API_KEY",
    )
    completion = commands.add_parser("completion", help="print the completion script of a shell")
    completion.add_argument("shell", choices=SHELLS)
    return made


def _add_request(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", help='text or a structured caption as JSON; "-" reads it from stdin')
    command.add_argument(
        "-o",
        "--output",
        type=_image_path,
        default=Path("image.png"),
        help=f"image file, of type {', '.join(FORMATS)} (default image.png); several images get -1, -2, ...",
    )
    command.add_argument("-n", type=int, help="number of images, 1 to 10 (default 1); image k uses seed + k")
    command.add_argument("--size", help="WIDTHxHEIGHT in pixels, or a ratio W:H (default: the model's)")
    command.add_argument("--preset", help="named sampling parameters (default: the server's)")
    command.add_argument("--seed", type=int, help="0 to 2147483647 (default: random)")
    command.add_argument(
        "--previews",
        type=int,
        default=3,
        choices=range(4),
        help="previews of each image, shown in a terminal with colours (default 3)",
    )
    command.add_argument(
        "--field",
        action="append",
        default=[],
        type=_field,
        metavar="NAME=VALUE",
        help="any other field of POST /v1/images; a value that is not JSON is a string. May be repeated",
    )


def _image_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text} does not end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def body(options: argparse.Namespace, with_previews: bool) -> dict[str, Any]:
    """The JSON body of `POST /v1/images`."""
    named = {name: getattr(options, name) for name in ("n", "size", "preset", "seed")}
    return {
        "prompt": sys.stdin.read().strip() if options.prompt == "-" else options.prompt,
        "output_format": FORMATS[options.output.suffix.lower()],
        "stream": True,
        "progress": True,
        "partial_images": options.previews if with_previews else 0,
        **{name: value for name, value in named.items() if value is not None},
        **dict(options.field),
    }
