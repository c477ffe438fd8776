"""`python -m models.training`: trains the demo checkpoint from nothing, or goes on where it was stopped."""

import argparse
import shutil
from pathlib import Path

from models.training import export, flow, stages

HERE = Path(__file__).parent


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
    options = arguments()
    work: Path = options.work_dir
    if options.fresh:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    stages.run(work, options.steps)
    export.export(work, options.out)


if __name__ == "__main__":
    main()
