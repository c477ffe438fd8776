"""Train the demo checkpoint from scratch, or resume a stopped run: `python -m models.training`."""

import argparse
import shutil
from pathlib import Path

from models.training import export, flow, stages

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.training", description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=HERE / ".work", help="folder of the state to resume from"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "demo", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=flow.STEPS, help="steps of the transformers' stage")
    parser.add_argument("--fresh", action="store_true", help="delete the state of an earlier run first")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    work: Path = options.work_dir
    if options.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    stages.run(work, options.steps)
    export.export(work, options.out)


if __name__ == "__main__":
    main()
