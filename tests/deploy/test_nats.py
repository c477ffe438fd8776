"""Tests of the NATS servers that the chart installs with `nats.enabled`."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.queue.connection.access import Access
from server.queue.connection.check import check_access
from server.settings.config_error import ConfigError
from server.settings.settings import read_settings
from tests.deploy.chart import CHART, PROFILES, HelmError, Manifest, environment, helm, kinds, one, render
from tests.deploy.fleet import free_port, wait
from tests.server.queue.nats_server import PROGRAM

LABEL = "app.kubernetes.io/name"


def named(manifests: tuple[Manifest, ...], kind: str, name: str) -> Manifest:
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def servers(manifests: tuple[Manifest, ...]) -> list[dict[str, Any]]:
    """The environment of the front and of the worker."""
    deployments = [each for each in manifests if each["kind"] == "Deployment"]
    return [environment(each["spec"]["template"]["spec"]["containers"][0]) for each in deployments]


@pytest.mark.parametrize("profile", [None, "fleet"])
def test_without_nats_the_release_has_none_of_it(profile: str | None) -> None:
    manifests = render(profile)
    assert {each["metadata"]["labels"][LABEL] for each in manifests} == {"ideoserve"}
    assert "StatefulSet" not in kinds(manifests)


def test_the_package_is_the_dependency() -> None:
    """Neither missing nor of another version, and the lock is that of Chart.yaml."""
    listed = helm("dependency", "list", str(CHART)).splitlines()[1]
    name, version, repository, status = listed.split()
    assert (name, status) == ("nats", "ok")
    (locked,) = yaml.safe_load((CHART / "Chart.lock").read_text())["dependencies"]
    assert locked == {"name": name, "version": version, "repository": repository}


def test_the_values_exist_in_the_nats_chart() -> None:
    (package,) = (CHART / "charts").iterdir()
    known = yaml.safe_load(helm("show", "values", str(package)))
    ours = yaml.safe_load((CHART / "values.yaml").read_text())["nats"]
    assert _unknown(ours, known, "") == ["enabled"]


def _unknown(ours: dict[str, Any], known: dict[str, Any], path: str) -> list[str]:
    """Keys that the other chart lacks. Its empty maps take any key."""
    keys = [f"{path}{key}" for key in ours.keys() - known.keys()]
    for key in ours.keys() & known.keys():
        if isinstance(known[key], dict) and known[key]:
            keys += _unknown(ours[key], known[key], f"{path}{key}.")
    return keys


def test_fronts_and_workers_use_the_servers_of_the_release() -> None:
    manifests = render("fleet-nats")
    for variables in servers(manifests):
        assert variables["IDEOSERVE_QUEUE"] == "nats://x-nats:4222"
        assert variables["IDEOSERVE_QUEUE_REPLICAS"] == "3"
    service = named(manifests, "Service", "x-nats")["spec"]
    pods = one(manifests, "StatefulSet")["spec"]
    assert {"name": "nats", "port": 4222}.items() <= service["ports"][0].items()
    assert service["selector"].items() <= pods["template"]["metadata"]["labels"].items()
    assert pods["replicas"] == 3
    (claim,) = pods["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "20Gi"
    egress = named(manifests, "NetworkPolicy", "x-ideoserve")["spec"]["egress"]
    assert egress[1] == {"ports": [{"port": 4222}]}
    budget = named(manifests, "PodDisruptionBudget", "x-nats")["spec"]
    assert budget["selector"] == pods["selector"]


def test_the_image_has_the_levels_of_pull_requests() -> None:
    image = one(render("fleet-nats"), "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["image"]
    name, _, version = image.partition(":")
    assert name == "nats"
    assert tuple(map(int, version.partition("-")[0].split("."))) >= (2, 12, 0)


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({"fullnameOverride": "queue"}, "nats://queue:4222"),
        ({"nameOverride": "broker"}, "nats://x-broker:4222"),
        ({"service__name": "jetstream"}, "nats://jetstream:4222"),
        ({"config__nats__port": 5222}, "nats://x-nats:5222"),
        ({"config__nats__tls__enabled": True, "config__nats__tls__secretName": "tls"}, "tls://x-nats:4222"),
    ],
)
def test_the_url_follows_the_values_of_the_nats_chart(values: dict[str, Any], url: str) -> None:
    manifests = render("fleet-nats", **{f"nats__{key}": value for key, value in values.items()})
    assert {each["IDEOSERVE_QUEUE"] for each in servers(manifests)} == {url}
    port = int(url.rpartition(":")[2])
    service = named(manifests, "Service", url.rpartition(":")[0].partition("//")[2])
    assert service["spec"]["ports"][0]["port"] == port
    assert named(manifests, "NetworkPolicy", "x-ideoserve")["spec"]["egress"][1]["ports"] == [{"port": port}]
    headless = one(manifests, "StatefulSet")["spec"]["serviceName"]
    assert _endpoint(manifests) == f"{headless}.ns:8222"


def _endpoint(manifests: tuple[Manifest, ...]) -> str:
    queued = one(manifests, "ScaledObject")["spec"]["triggers"][2]
    assert queued["type"] == "nats-jetstream"
    endpoint: str = queued["metadata"]["natsServerMonitoringEndpoint"]
    return endpoint


def test_keda_reads_the_monitoring_port_of_each_server() -> None:
    manifests = render("fleet-nats", nats__config__monitor__port=9222)
    assert _endpoint(manifests) == "x-nats-headless.ns:9222"
    ports = named(manifests, "Service", "x-nats-headless")["spec"]["ports"]
    assert 9222 in [port["port"] for port in ports if port["name"] == "monitor"]
    other = render("fleet-nats", autoscaling__keda__nats__monitoring="other.nats:8222")
    assert _endpoint(other) == "other.nats:8222"


@pytest.mark.parametrize(
    ("values", "replicas"),
    [
        ({"nats__config__cluster__enabled": False}, "1"),
        ({"nats__config__cluster__replicas": 2}, "2"),
        ({"nats__config__cluster__replicas": 5}, "3"),
        ({"nats__config__cluster__replicas": 5, "settings__queue_replicas": 5}, "5"),
        ({"settings__queue_replicas": 1}, "1"),
    ],
)
def test_messages_are_stored_on_as_many_servers_as_there_are(values: dict[str, Any], replicas: str) -> None:
    manifests = render("fleet-nats", **values)
    assert {each["IDEOSERVE_QUEUE_REPLICAS"] for each in servers(manifests)} == {replicas}
    assert one(manifests, "StatefulSet")["spec"]["replicas"] >= int(replicas)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("queue.url=nats://nats:4222", "queue.url and nats.enabled exclude each other"),
        ("settings.queue_replicas=5", "settings.queue_replicas is 5, but nats.config.cluster has 3"),
        ("settings.queue_replicas=3,nats.config.cluster.enabled=false", "has 1 NATS servers"),
    ],
)
def test_contradictions_are_refused(values: str, reason: str) -> None:
    with pytest.raises(HelmError, match=reason):
        helm("template", "x", str(CHART), "--set", f"nats.enabled=true,{values}")


@pytest.mark.parametrize("kind", ["none", "keda"])
def test_only_the_release_reaches_the_clients_port(kind: str) -> None:
    manifests = render("fleet-nats", autoscaling__kind=kind, nats__promExporter__enabled=True)
    policy = named(manifests, "NetworkPolicy", "x-ideoserve-nats")["spec"]
    pods = one(manifests, "StatefulSet")["spec"]["template"]
    assert policy["podSelector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    peers = {port["port"]: rule["from"] for rule in policy["ingress"] for port in rule["ports"]}
    (clients,) = peers["nats"]
    assert clients == {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "x"}}}
    for each in manifests:
        if each["kind"] in ("Deployment", "StatefulSet"):
            labels = each["spec"]["template"]["metadata"]["labels"].items()
            assert clients["podSelector"]["matchLabels"].items() <= labels
    assert peers["cluster"] == peers["nats"]
    assert ("monitor" in peers) == (kind == "keda")
    ports = {port["name"] for container in pods["spec"]["containers"] for port in container.get("ports", [])}
    assert peers.keys() <= ports
    assert "NetworkPolicy" not in kinds(render("fleet-nats", networkPolicy__enabled=False))


def test_the_pods_of_nats_meet_the_restricted_level() -> None:
    pods = one(render("fleet-nats"), "StatefulSet")["spec"]["template"]["spec"]
    assert pods["securityContext"]["runAsNonRoot"] is True
    assert pods["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pods["automountServiceAccountToken"] is False
    for container in pods["containers"]:
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
    openshift = render("fleet-nats", files=(PROFILES["openshift"],))
    context = one(openshift, "StatefulSet")["spec"]["template"]["spec"]["securityContext"]
    assert {context.get(key) for key in ("runAsUser", "runAsGroup", "fsGroup")} == {None}
    assert context["runAsNonRoot"] is True


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, str]]:
    """NATS servers with the rendered configuration, on loopback. Yields their URLs and one for monitoring."""
    manifests = render("fleet-nats")
    text = named(manifests, "ConfigMap", "x-nats-config")["data"]["nats.conf"]
    pods = [f"x-nats-{number}" for number in range(one(manifests, "StatefulSet")["spec"]["replicas"])]
    routes = {pod: free_port() for pod in pods}
    for pod, port in routes.items():
        assert f"{pod}.x-nats-headless:6222" in text
        text = text.replace(f"{pod}.x-nats-headless:6222", f"127.0.0.1:{port}")
    clients, monitoring = [free_port() for _ in pods], [free_port() for _ in pods]
    with ExitStack() as stack:
        for pod, client, monitor in zip(pods, clients, monitoring, strict=True):
            config = folder / f"{pod}.conf"
            config.write_text(_local(text, folder / pod, client, monitor, routes[pod]))
            process = subprocess.Popen(
                [PROGRAM, "--config", config],
                env={**os.environ, "SERVER_NAME": pod},
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield ",".join(f"nats://127.0.0.1:{port}" for port in clients), f"http://127.0.0.1:{monitoring[0]}"


def _local(text: str, folder: Path, client: int, monitor: int, route: int) -> str:
    for old, new in [
        ("/data", str(folder)),
        ("/var/run/nats", str(folder.parent)),
        ('"port": 4222', f'"host": "127.0.0.1", "port": {client}'),
        ('"http_port": 8222', f'"http": "127.0.0.1:{monitor}"'),
        ('"port": 6222', f'"host": "127.0.0.1", "port": {route}'),
    ]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_the_queue_runs_on_the_rendered_cluster(tmp_path: Path) -> None:
    """Each message is stored by three servers, as the pods declare it."""
    (replicas,) = {each["IDEOSERVE_QUEUE_REPLICAS"] for each in servers(render("fleet-nats"))}
    with cluster(tmp_path) as (url, monitoring):
        flags = ["--model", "m", "--queue", url, "--queue-replicas", replicas]
        access = Access.of(read_settings(flags))

        def starts() -> bool:
            """As a pod that is restarted until the servers have elected a leader."""
            try:
                check_access(access)
            except ConfigError:
                return False
            return True

        wait(starts)
        answer = httpx.get(f"{monitoring}/jsz", params={"streams": True, "config": True}).json()
    assert answer["config"]["max_storage"] == 20 << 30
    (account,) = answer["account_details"]
    assert {each["config"]["num_replicas"] for each in account["stream_detail"]} == {3}
