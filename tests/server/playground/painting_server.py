"""`python -m tests.server.playground.painting_server FLAGS`: the fake server, whose images of a caption show
each box in the first colour of its palette, on white."""

import json
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from PIL import Image, ImageDraw

from engine.messages import ImageDone, RequestOutput
from engine.request import EngineRequest
from tests.server import fake_server, prompt_server
from tests.server.prompt_server import ReadingEngine


class PaintingEngine(ReadingEngine):
    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        text = self.texts[request.token_ids]
        async for output in super().generate(request):
            is_painted = isinstance(output, ImageDone) and text.startswith("{")
            yield _painted(output, json.loads(text)) if is_painted else output


def _painted(image: ImageDone, caption: dict[str, Any]) -> ImageDone:
    canvas = Image.new("RGB", (image.width, image.height), "white")
    for element in caption.get("compositional_deconstruction", {}).get("elements", []):
        if "bbox" not in element:
            continue
        top, left, bottom, right = element["bbox"]
        box = [left * image.width / 1000, top * image.height / 1000]
        box += [right * image.width / 1000 - 1, bottom * image.height / 1000 - 1]
        ImageDraw.Draw(canvas).rectangle(box, fill=element.get("color_palette", ["black"])[0])
    return replace(image, rgb=canvas.tobytes())


if __name__ == "__main__":
    vars(prompt_server).update(fake_control=fake_server.control)
    vars(fake_server).update(FakeEngine=PaintingEngine, control=prompt_server.control)
    sys.exit(fake_server.main())
