"""Rules about imports and files, checked against the source and in a new process."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(file for package in ("engine", "server") for file in (ROOT / package).rglob("*.py"))
HTTP = {"fastapi", "starlette", "uvicorn", "httpx", "h11", "server"}
MODEL = {"torch", "transformers", "diffusers", "safetensors"}
# The worker side of the process boundary.
TORCH_FOLDERS = {
    "engine.adapters",
    "engine.worker",
    "engine.compilation",
    "engine.runner",
    "engine.models",
    "engine.kernels",
    "engine.quantized",
    "engine.checkpoint",
    "engine.tuning",
}
LONGEST_FILE = 250  # lines; the models are exempt: one file each
MOST_FILES = 10  # Python files of a folder, not counting its subfolders


@cache
def modules() -> dict[str, Path]:
    """Every module of both packages, by dotted name."""
    return {_dotted(file): file for file in FILES}


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, for_types: bool = False) -> Iterator[str]:
    """Dotted names that the file imports at run time; with `for_types`, also under TYPE_CHECKING."""
    yield from _imports(ast.parse(file.read_text("utf-8")), for_types)


def _imports(node: ast.AST, for_types: bool) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not for_types:
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, for_types)


def _importers(package: str, forbidden: set[str]) -> list[str]:
    """Modules of the package that import any of the forbidden top-level names."""
    return [
        name
        for name, file in modules().items()
        if name.split(".")[0] == package and forbidden & {each.split(".")[0] for each in imports(file)}
    ]


def test_the_engine_does_not_import_http() -> None:
    assert _importers("engine", HTTP) == []


def test_the_server_never_imports_the_model() -> None:
    assert _importers("server", MODEL) == []


def test_the_server_has_one_http_client() -> None:
    """The commands and the demos are clients, not parts of the server."""
    assert _importers("server", {"httpx"}) == [
        "server.command.commands",
        "server.command.streaming",
        "server.demo.__main__",
        "server.demo.fleet",
        "server.demo.processes",
        "server.upstream.client",
        "server.upstream.pinned",  # its transport for URLs that clients name
    ]
    assert _importers("server", {"requests", "urllib", "urllib3", "http", "aiohttp", "websockets"}) == []


def test_the_engine_does_not_import_diffusers() -> None:
    assert _importers("engine", {"diffusers"}) == []


def test_files_have_no_import_cycles() -> None:
    graph = {
        name: {_module(target) for target in imports(file, for_types=True)}
        for name, file in modules().items()
    }
    ordered = list(TopologicalSorter(graph).static_order())
    assert ordered.index("engine.errors") < ordered.index("engine.checkpoint.loader")


def test_folders_have_no_import_cycles() -> None:
    """Each file at the top of `engine` or `server` counts as a folder."""
    graph: dict[str, set[str]] = {}
    for name, file in modules().items():
        targets = {_folder(_module(target)) for target in imports(file, for_types=True)}
        graph.setdefault(_folder(name), set()).update(targets - {_folder(name)})
    ordered = list(TopologicalSorter(graph).static_order())
    assert ordered.index("engine.kernels") < ordered.index("engine.models") < ordered.index("engine.client")
    assert ordered.index("server.schemas") < ordered.index("server.generation") < ordered.index("server.app")


def _module(target: str) -> str:
    """The imported module: the target, or the module whose attribute the target names."""
    return target if target in modules() else target.rpartition(".")[0]


def _folder(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_only_the_worker_side_imports_torch() -> None:
    importers = {
        _folder(name)
        for name, file in modules().items()
        if "torch" in {target.split(".")[0] for target in imports(file)}
    }
    assert importers <= TORCH_FOLDERS


def test_the_client_side_of_the_engine_loads_no_torch() -> None:
    client = [name for name in modules() if name.startswith("engine") and _folder(name) not in TORCH_FOLDERS]
    client += ["engine.adapters.adapter_file"]  # the server reads the headers of adapters
    assert len(client) > 15
    assert _loaded_by("; ".join(f"import {name}" for name in client)) & MODEL == set()


def test_the_server_loads_no_torch() -> None:
    server = [name for name in modules() if name.startswith("server") and not name.endswith("__main__")]
    assert _loaded_by("; ".join(f"import {name}" for name in server)) & MODEL == set()


def test_the_engine_loads_no_http() -> None:
    engine = [name for name in modules() if name.startswith("engine")]
    loaded = _loaded_by("; ".join(f"import {name}" for name in engine))
    assert "torch" in loaded
    assert loaded & {"fastapi", "starlette", "uvicorn", "server"} == set()


def _loaded_by(statements: str) -> set[str]:
    """Top-level names in `sys.modules` of a new process that ran the statements."""
    script = f"{statements}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_files_are_short() -> None:
    files = [file for file in FILES if file.parent != ROOT / "engine" / "models"]
    assert [file for file in files if len(file.read_text("utf-8").splitlines()) > LONGEST_FILE] == []


def test_folders_are_small() -> None:
    folders = {file.parent for file in FILES}
    assert [folder for folder in folders if len(list(folder.glob("*.py"))) > MOST_FILES] == []
