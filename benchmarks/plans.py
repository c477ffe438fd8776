"""Memory plans of checkpoints of the published sizes, of which only the headers are written."""

from dataclasses import replace
from pathlib import Path

from benchmarks.work import VALUE
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.config.part_folders import PartFolders
from engine.memory.plan import MemoryPlan
from engine.precision import PrecisionOptions

_DEFAULT = PrecisionOptions()


def published_plan(
    folder: Path, is_guided: bool = True, precision: PrecisionOptions = _DEFAULT, edits: bool = True
) -> MemoryPlan:
    """The plan on a GPU of a checkpoint of published sizes in `folder`, whose capacity does not matter."""
    (folder / "model_index.json").write_text("{}", "utf-8")
    config = ModelConfig.load(folder, "published")
    config = replace(config, folders=PartFolders.of(folder, is_guided=is_guided))
    options = EngineOptions(("cuda",), precision=precision, edits=edits)
    return replace(MemoryPlan.of(config, options), itemsize=VALUE, is_cuda=True, capacity=None)
