"""LangChain's DALL-E tool: python use_langchain.py BASE_URL. Prints what it saw as JSON."""

import json
import sys
from typing import Any

from langchain_community.tools.openai_dalle_image_generation import OpenAIDALLEImageGenerationTool
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper


def run(prompt: str = "a cat", **options: Any) -> str:
    wrapper = DallEAPIWrapper(api_key="any", base_url=sys.argv[1], **options)
    try:
        return OpenAIDALLEImageGenerationTool(api_wrapper=wrapper).run(prompt)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


print(
    json.dumps(
        {
            "default": run(),
            "model": run(model="other"),
            "size": run(size="1x1"),
            "deadline": run("deadline: a cat"),
        }
    )
)
