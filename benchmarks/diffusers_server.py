"""A minimal server around diffusers' pipeline: FastAPI, one request at a time.

The baseline of `benchmarks.versus_http`, with the pipeline options that are fastest for mixed sizes.
"""

import argparse
import base64
import io
import socket
import threading
from typing import Any

import torch
import uvicorn
from diffusers import Ideogram4Pipeline
from fastapi import FastAPI
from pydantic import BaseModel


class Wanted(BaseModel):
    prompt: str
    size: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    mu: float
    std: float


def create_app(pipeline: Any) -> FastAPI:
    """The application: one route that holds a lock while the pipeline runs."""
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/images")
    def images(wanted: Wanted) -> dict[str, Any]:
        width, height = map(int, wanted.size.split("x"))
        with lock:
            image = pipeline(
                wanted.prompt,
                width=width,
                height=height,
                num_inference_steps=wanted.num_inference_steps,
                guidance_scale=wanted.guidance_scale,
                guidance_schedule=None,
                mu=wanted.mu,
                std=wanted.std,
                max_sequence_length=count_tokens(pipeline.tokenizer, wanted.prompt),
                generator=torch.Generator("cpu").manual_seed(wanted.seed),
            ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}

    return app


def count_tokens(tokenizer: Any, prompt: str) -> int:
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diffusers_server", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    pipeline = Ideogram4Pipeline.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    pipeline.set_progress_bar_config(disable=True)
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        app = create_app(pipeline)
        uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None, access_log=False)).run([listener])


if __name__ == "__main__":
    main()
