"""Render the chart with helm."""

import json
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CHART = REPOSITORY / "deploy/helm"
PROFILES = {file.stem: file for file in sorted((CHART / "profiles").glob("*.yaml"))}
KUBERNETES = "1.35"

Manifest = dict[str, Any]


class HelmError(Exception):
    """helm failed. The message is its output."""


def helm(*arguments: str) -> str:
    """Run helm and return its output. Raises HelmError."""
    done = subprocess.run([HERE / ".tools/helm", *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


@cache
def render(
    profile: str | None = None,
    kubernetes: str = KUBERNETES,
    operator: bool = True,
    files: Sequence[Path] = (),
    **values: Any,
) -> tuple[Manifest, ...]:
    """Render a profile, values files, or the defaults. In `values`, `__` stands for a dot."""
    chosen = []
    for file in [PROFILES[profile], *files] if profile else files:
        chosen += ["--values", str(file)]
    for key, value in values.items():
        chosen += ["--set-json", f"{key.replace('__', '.')}={json.dumps(value)}"]
    if operator:
        chosen += ["--api-versions", "monitoring.coreos.com/v1"]
    text = helm("template", "x", str(CHART), "--namespace", "ns", "--kube-version", kubernetes, *chosen)
    return tuple(document for document in yaml.safe_load_all(text) if document)


def one(manifests: tuple[Manifest, ...], kind: str) -> Manifest:
    """Return the only manifest of a kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def kinds(manifests: tuple[Manifest, ...]) -> set[str]:
    return {manifest["kind"] for manifest in manifests}


def pod(manifests: tuple[Manifest, ...]) -> Manifest:
    spec: Manifest = one(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def server(manifests: tuple[Manifest, ...]) -> Manifest:
    container: Manifest = pod(manifests)["containers"][0]
    return container


def environment(container: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
