"""LiteLLM: python use_litellm.py BASE_URL. Prints what it saw as JSON."""

import asyncio
import base64
import json
import sys
from typing import Any

import litellm

litellm.suppress_debug_info = True  # printed to stdout otherwise
SERVED = {"model": "openai/fake-model", "api_base": sys.argv[1], "api_key": "any", "prompt": "a cat"}
ERRORS = (litellm.BadRequestError, litellm.NotFoundError, litellm.InternalServerError, litellm.Timeout)
OPTIONS = {"n": 2, "size": "128x64", "quality": "high", "output_format": "jpeg", "user": "u"}


async def image_async() -> litellm.ImageResponse:
    return await litellm.aimage_generation(**SERVED)


def image(**options: Any) -> litellm.ImageResponse:
    return litellm.image_generation(**{**SERVED, **options})


def summary(response: litellm.ImageResponse) -> dict[str, Any]:
    answer = response.model_dump()
    return {
        "files": [base64.b64decode(each["b64_json"])[:4].hex() for each in answer["data"]],
        **{name: answer[name] for name in ("size", "quality", "output_format")},
        "tokens": [answer["usage"][name] for name in ("input_tokens", "output_tokens", "total_tokens")],
    }


def error(**options: Any) -> dict[str, Any]:
    try:
        image(**options)
    except ERRORS as raised:
        return {"class": type(raised).__name__, "status": raised.status_code, "message": raised.message}
    raise AssertionError("no error")


print(
    json.dumps(
        {
            "default": summary(image()),
            "async": summary(asyncio.run(image_async())),
            "alias": summary(image(model="openai/dall-e-3")),
            "options": summary(image(**OPTIONS, extra_body={"seed": 5})),
            "size": error(size="1x1"),
            "url": error(response_format="url"),
            "model": error(model="openai/other"),
            "failure": error(prompt="fail: a cat"),
            "deadline": error(prompt="deadline: a cat"),
        }
    )
)
