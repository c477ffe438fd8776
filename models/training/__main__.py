"""`python -m models.training`: trains the demo checkpoint from nothing, or goes on where it was stopped."""

import argparse
import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from models.training import export, flow, pool, text, tokenizer, vae

HERE = Path(__file__).parent
PROCESSES = 2


def read_and_see(rank: int, work: Path) -> None:
    """The text model and the VAE need nothing of each other: one process each."""
    torch.set_num_threads(1)
    (text.fit if rank == 0 else vae.fit)(work)


def draw_pool(rank: int, work: Path) -> None:
    """Half of the pool."""
    torch.set_num_threads(1)
    pool.fit(work, rank, PROCESSES, shown=rank == 0)


def learn_flow(rank: int, work: Path, port: int, steps: int) -> None:
    """One of the processes that train the DiTs, gradients averaged between them."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    flow.fit(work, rank, PROCESSES, steps, shown=rank == 0)
    dist.destroy_process_group()


def side_by_side(stage: Callable[..., None], *arguments: Any) -> None:
    """Run a stage in all processes; the first argument is each one's rank. Raises if one of them fails."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=stage, args=(rank, *arguments)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{stage.__name__} failed; run the same command again to go on")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.training", description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=HERE / ".work", help="where a stopped run goes on from"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "demo", help="the checkpoint's folder")
    parser.add_argument("--steps", type=int, default=flow.STEPS, help="steps of the long stage")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run left")
    return parser.parse_args()


def main() -> None:
    """All stages in their order; those that are finished already are skipped."""
    options = arguments()
    work: Path = options.work_dir
    if options.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.fit(work)
    side_by_side(read_and_see, work)
    side_by_side(draw_pool, work)
    side_by_side(learn_flow, work, free_port(), options.steps)
    export.export(work, options.out)


if __name__ == "__main__":
    main()
