"""Haystack's image generator: python use_haystack.py BASE_URL. Prints what it saw as JSON."""

import asyncio
import base64
import json
import sys
from typing import Any

import openai
from haystack import Pipeline
from haystack.components.generators.openai_image_generator import OpenAIImageGenerator
from haystack.utils import Secret


def generator(**options: Any) -> OpenAIImageGenerator:
    return OpenAIImageGenerator(api_key=Secret.from_token("any"), api_base_url=sys.argv[1], **options)


def summary(answer: dict[str, Any]) -> dict[str, Any]:
    images = [base64.b64decode(each) for each in answer["images"]]
    size = [int.from_bytes(images[0][place : place + 4]) for place in (16, 20)]
    return {"images": len(images), "is_png": images[0][1:4] == b"PNG", "size": size}


def in_pipeline() -> dict[str, Any]:
    pipeline = Pipeline()
    pipeline.add_component("image", generator(model="fake-model", size="128x64", quality="low"))
    return pipeline.run({"image": {"prompt": "a cat"}})["image"]


def error(prompt: str = "a cat", **options: Any) -> dict[str, Any]:
    try:
        generator(**options).run(prompt)
    except openai.APIStatusError as raised:
        return {"class": type(raised).__name__, "code": raised.code, "param": raised.param}
    raise AssertionError("no error")


print(
    json.dumps(
        {
            "default": summary(generator().run("a cat")),
            "async": summary(asyncio.run(generator().run_async("a cat"))),
            "pipeline": summary(in_pipeline()),
            "url": summary(generator(response_format="url").run("a cat")),
            "size": error(size="1x1"),
            "deadline": error("deadline: a cat"),
        }
    )
)
