"""Generation parameters in the metadata of image files. `server.inspect` reads them."""

import json
from dataclasses import asdict
from typing import Any

from PIL import Image, PngImagePlugin

from engine.config.model_config import ModelConfig
from engine.messages import ImageDone
from engine.request import AdapterUse
from server import VERSION
from server.generation.parameters import Parameters

PNG_KEY = "ideoserve"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
ASCII = b"ASCII\0\0\0"
MAX_EXIF_BYTES = 60_000


def describe(parameters: Parameters, config: ModelConfig, with_prompt: bool) -> dict[str, Any]:
    """Everything needed to repeat a request, except the seed of each image."""
    facts: dict[str, Any] = {
        "version": VERSION,
        "model": config.model_id,
        "model_hash": config.fingerprint,
        "width": parameters.width,
        "height": parameters.height,
        "preset": parameters.preset,
        "guidance_schedule": parameters.sampling.guidance_schedule,
        "mu": parameters.sampling.mu,
        "std": parameters.sampling.std,
    }
    if parameters.adapters:
        facts["adapters"] = [_adapter(use) for use in parameters.adapters]
    if parameters.source:
        facts["strength"] = parameters.source.strength
    return facts | (parameters.prompt.facts() if with_prompt else {})


def _adapter(use: AdapterUse) -> dict[str, Any]:
    steps = [use.first_step, use.end_step]
    return {"name": use.name, "digest": use.digest, "scale": use.scale, "steps": steps}


def made(image: ImageDone) -> dict[str, Any]:
    """The seed of an image, and the precision if its worker reported it."""
    precision = {"precision": asdict(image.precision)} if image.precision else {}
    return {"seed": image.seed, **precision}


def png_info(facts: dict[str, Any]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, json.dumps(facts, ensure_ascii=False))
    info.add_text("Software", f"ideoserve {VERSION}")
    return info


def exif(facts: dict[str, Any]) -> bytes:
    """The facts as an EXIF user comment, without the prompt if they exceed the 64 KiB of EXIF."""
    text = json.dumps(facts)
    if len(text) > MAX_EXIF_BYTES:
        prompts = dict.fromkeys(facts.keys() & {"prompt", "revised_prompt"})
        text = json.dumps(facts | prompts | {"prompt_omitted": "too long for EXIF"})
    block = Image.Exif()
    block.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + text.encode("ascii")
    block[0x0131] = f"ideoserve {VERSION}"
    return block.tobytes()


def read(image: Image.Image) -> dict[str, Any] | None:
    """The facts in an image; None without them."""
    text = image.info.get(PNG_KEY)
    if text is None:
        comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
        if not isinstance(comment, bytes) or not comment.startswith(ASCII):
            return None
        text = comment.removeprefix(ASCII).decode("ascii", "replace")
    try:
        facts = json.loads(text)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None
