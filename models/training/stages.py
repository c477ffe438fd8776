"""The stages in order. Each runs in two processes of one thread, which is faster than one of two threads."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models.training import flow, pool, text, vae
from models.training.language import tokenizer

PROCESSES = 2


def run(work: Path, steps: int) -> None:
    """Run all stages that are not finished yet."""
    tokenizer.fit(work)
    if _lacks(work / "text.pt", work / "vae.pt"):
        _side_by_side(_read_and_see, work)
    if _lacks(*pool.shard_paths(work)):
        _side_by_side(_draw_pool, work)
    if _lacks(work / "dit.pt"):
        _side_by_side(_learn_flow, work, _free_port(), steps)


def _lacks(*files: Path) -> bool:
    return not all(file.exists() for file in files)


def _read_and_see(rank: int, work: Path) -> None:
    """Train the text model and the VAE, which are independent, in one process each."""
    (text.fit if rank == 0 else vae.fit)(work)


def _draw_pool(rank: int, work: Path) -> None:
    """Compute one process's share of the pool."""
    pool.fit(work, rank, PROCESSES, shown=rank == 0)


def _learn_flow(rank: int, work: Path, port: int, steps: int) -> None:
    """Train the DiTs in one of the processes that average their gradients."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    flow.fit(work, rank, PROCESSES, steps, shown=rank == 0)
    dist.destroy_process_group()


def _side_by_side(stage: Callable[..., None], *arguments: Any) -> None:
    """Run a stage in all processes, with the rank as its first argument. Raises RuntimeError if one fails."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_alone, args=(stage, rank, *arguments)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{stage.__name__} failed; run the same command again to resume")


def _alone(stage: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    stage(*arguments)


def _free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
