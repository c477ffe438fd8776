"""Validate the manifests of every profile against the Kubernetes and custom resource schemas."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import settings_schema
from tests.deploy.chart import CHART, HERE, PROFILES, REPOSITORY, HelmError, Manifest, helm, render

CUSTOM = ("keda.sh/", "gateway.networking.k8s.io/", "monitoring.coreos.com/")
EVERYTHING: dict[str, Any] = {
    "model__uri": "init://fp8",
    "model__init__image": "example.com/fetch:1",
    "model__init__command": ["/fetch"],
    "model__token__existingSecret": "hub",
    "cache__existingClaim": "cache",
    "gpu__runtimeClassName": "nvidia",
    "gpu__count": 2,
    "gpu__layout": "split",
    "ingress__enabled": True,
    "ingress__host": "a.example.com",
    "ingress__tlsSecret": "tls",
    "httpRoute__enabled": True,
    "httpRoute__parentRefs": [{"name": "gateway"}],
    "autoscaling__kind": "keda",
    "autoscaling__minReplicas": 0,
    "autoscaling__keda__wakeQuery": "sum(gateway)",
    "image__pullSecrets": ["registry"],
    "priorityClassName": "serving",
    "secrets": ["hive"],
    "serviceAccount__annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/images"},
    "podLabels": {"azure.workload.identity/use": "true"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
}
RENDERINGS: list[tuple[str | None, str, dict[str, Any]]] = [
    (None, "1.35", {}),
    *((profile, "1.35", {}) for profile in PROFILES),
    (None, "1.35", EVERYTHING),
    (None, "1.35", {"model__uri": "oci://example.com/weights:1"}),
    (None, "1.35", {"model__uri": "hf://owner/name@v1"}),
    (
        None,
        "1.35",
        {"nats__enabled": True, "nats__natsBox__enabled": True, "nats__promExporter__enabled": True},
    ),
    ("gpu", "1.29", {}),
]


def _kubernetes_errors(manifests: tuple[Manifest, ...], version: str, folder: Path) -> str:
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(m for m in manifests if not m["apiVersion"].startswith(CUSTOM)))
    tool = Path(sys.executable).with_name("kubernetes-validate")
    done = subprocess.run([tool, "--strict", "-k", version, file], capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def _custom_errors(manifests: tuple[Manifest, ...]) -> str:
    custom = [manifest for manifest in manifests if manifest["apiVersion"].startswith(CUSTOM)]
    tool = ["node", str(HERE / "validate-custom.mjs")]
    done = subprocess.run(tool, input=json.dumps(custom), capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize(("profile", "version", "values"), RENDERINGS)
def test_valid(profile: str | None, version: str, values: dict[str, Any], tmp_path: Path) -> None:
    manifests = render(profile, kubernetes=version, **values) if not values else _render(version, values)
    assert _kubernetes_errors(manifests, version, tmp_path) == ""
    assert _custom_errors(manifests) == ""


def _render(version: str, values: dict[str, Any]) -> tuple[Manifest, ...]:
    """Bypass the cache, because lists are not hashable."""
    return render.__wrapped__(None, kubernetes=version, **values)


def test_the_validators_report_errors(tmp_path: Path) -> None:
    manifests = json.loads(json.dumps(render("gpu")))
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    by_kind["Service"]["spec"]["prots"] = []
    by_kind["ScaledObject"]["spec"]["triggers"] = "none"
    assert "prots" in _kubernetes_errors(manifests, "1.35", tmp_path)
    assert "ScaledObject" in _custom_errors(manifests)


@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_lint(profile: str | None) -> None:
    helm("lint", "--strict", str(CHART), *(["--values", str(PROFILES[profile])] if profile else []))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("settings.max_imagse=1", "max_imagse"),
        ("settings.max_n=11", "max_n"),
        ("gpu.layout=split", "gpu"),
        ("rollout.maxUnavailable=0", "maxUnavailable"),
        ("autoscaling.minReplicas=0", "minReplicas"),
        ("autoscaling.kind=keda,autoscaling.minReplicas=0", "wakeQuery"),
        ("drain.preStopSeconds=0", "preStopSeconds"),
        ("prometheusRule.latencySeconds=300", "latencySeconds"),
        ("ingress.enabled=true", "host"),
        ("httpRoute.enabled=true", "parentRefs"),
        ("model.uri=ideogram", "uri"),
        ("model.uri=hf://owner/name@", "uri"),
        ("model.uri=init://fp8", "image"),
        ("store.uri=file:///images", "uri"),
        ("store.uri=pvc://claim", "existingSecret"),
        ("host=localhost", "host"),
        ("podSecurityContext.runAsUser=0", "runAsUser"),
        ("replica=2", "replica"),
        ("autoscaling.keda.nats.monitoring=a:1,model.name=m", "nats/enabled"),
        ("nats.enabled=true,autoscaling.kind=keda", "model/name"),
        ("nats.enabled=true,nats.config.cluster.replicas=1", "replicas"),
        ("nats.enabled=true,nats.config.jetstream.enabled=false", "jetstream"),
        ("nats.enabled=true,nats.config.jetstream.fileStore.pvc.enabled=false", "pvc"),
        ("nats.enabled=true,nats.namespaceOverride=other", "namespaceOverride"),
    ],
)
def test_the_schema_rejects(values: str, reason: str) -> None:
    with pytest.raises(HelmError, match=reason):
        helm("template", "x", str(CHART), "--set", values)


def test_the_schema_of_settings_is_current() -> None:
    schema = json.loads(settings_schema.SCHEMA.read_text())
    assert schema["properties"]["settings"] == settings_schema.settings_schema(), (
        "python -m tests.deploy.settings_schema"
    )


def test_the_schema_and_the_values_have_the_same_keys() -> None:
    schema = json.loads(settings_schema.SCHEMA.read_text())
    assert _differences(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "") == []


def _differences(schema: dict[str, Any], values: dict[str, Any], path: str) -> list[str]:
    """Return the keys that only one of the two has. `settings` may have more; `global` belongs to helm."""
    known = set(schema["properties"]) - {"global"}
    errors = [f"{path}{key}" for key in known ^ set(values) if path != "settings."]
    for key in known & set(values):
        if "properties" in schema["properties"][key]:
            errors += _differences(schema["properties"][key], values[key], f"{path}{key}.")
    return errors


def test_every_value_is_used() -> None:
    """Every key must appear in a template, or be a value of the NATS chart (test_nats)."""
    templates = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    del values["nats"]
    assert [key for key in _leaves(values) if key not in templates] == []


def _leaves(values: dict[str, Any]) -> list[str]:
    """Return the names of the leaves. Maps that are passed on as a whole count as leaves."""
    whole = {"settings", "resources", "labels", "gateway", "prometheus", "podSecurityContext"}
    names = []
    for key, value in values.items():
        names += _leaves(value) if isinstance(value, dict) and value and key not in whole else [key]
    return names


def test_the_table_of_values_is_current(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    text = (CHART / "README.md").read_text()
    copy.write_text(text.partition("## Parameters\n")[0] + "## Parameters\n")
    tool = HERE / "node_modules/.bin/readme-generator"
    subprocess.run(
        [tool, "--values", CHART / "values.yaml", "--readme", copy], check=True, capture_output=True
    )
    assert copy.read_text() == text, f"{tool.relative_to(REPOSITORY)} --values ... --readme ..."


def test_hadolint() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    subprocess.run([tool, REPOSITORY / "deploy/Dockerfile"], check=True)
