"""What the rendered chart says, row by row of what a chart of a GPU server needs."""

import math
from pathlib import Path
from typing import Any

import pytest

from server.settings.settings import read_settings
from tests.deploy.chart import Manifest, environment, kinds, one, pod, render, server


def test_start_ready_live() -> None:
    container = server(render())
    start, ready, live = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert start["httpGet"]["path"] == live["httpGet"]["path"] == "/healthz"
    assert ready["httpGet"]["path"] == "/readyz"
    assert start["periodSeconds"] * start["failureThreshold"] == 600
    assert (ready["periodSeconds"], ready["failureThreshold"]) == (1, 1)
    assert (live["periodSeconds"], live["failureThreshold"]) == (1, 5)
    assert "initialDelaySeconds" not in start | ready | live


def test_drain() -> None:
    manifests = render(settings__max_request_seconds=100, drain__preStopSeconds=15)
    assert pod(manifests)["terminationGracePeriodSeconds"] == math.ceil((15 + 5 + 100) * 1.5)
    assert pod(manifests)["enableServiceLinks"] is False
    assert server(manifests)["lifecycle"]["preStop"] == {"sleep": {"seconds": 15}}
    assert environment(server(manifests))["IDEOSERVE_DRAIN_DELAY_SECONDS"] == "5"


def test_preStop_before_kubernetes_1_30() -> None:
    hook = server(render(kubernetes="1.29"))["lifecycle"]["preStop"]
    assert hook == {"exec": {"command": ["sleep", "10"]}}


def test_the_server_reads_every_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for profile in (None, "gpu", "multi-gpu", "cpu-demo"):
        for name, value in environment(server(render(profile))).items():
            monkeypatch.setenv(name, str(value))
        settings = read_settings(["--model", "x"])
        assert settings.drain_delay_seconds == 5
        assert settings.max_request_seconds == 300


def test_large_numbers_of_a_values_file_stay_whole(tmp_path: Path) -> None:
    """helm reads them as floats, and would write 2.097152e+06, which is no integer to the server."""
    file = tmp_path / "values.yaml"
    file.write_text("settings: {max_request_seconds: 0.5, max_body_bytes: 2097152, log_prompts: true}")
    variables = environment(server(render.__wrapped__(files=(file,))))
    assert variables["IDEOSERVE_MAX_BODY_BYTES"] == "2097152"
    assert variables["IDEOSERVE_MAX_REQUEST_SECONDS"] == "0.5"
    assert variables["IDEOSERVE_LOG_PROMPTS"] == "true"


@pytest.mark.parametrize(
    ("values", "devices", "second"),
    [
        ({"gpu__count": 1}, "cuda:0", None),
        ({"gpu__count": 4}, "cuda:0,cuda:1,cuda:2,cuda:3", None),
        ({"gpu__count": 2, "gpu__layout": "split"}, "cuda:0", "cuda:1"),
    ],
)
def test_gpus(values: dict[str, Any], devices: str, second: str | None) -> None:
    container = server(render(**values))
    assert environment(container)["IDEOSERVE_DEVICES"] == devices
    assert environment(container).get("IDEOSERVE_UNCOND_DEVICE") == second
    assert container["resources"]["limits"]["nvidia.com/gpu"] == values["gpu__count"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == values["gpu__count"]
    assert [entry["key"] for entry in pod(render(**values))["tolerations"]] == ["nvidia.com/gpu"]


def test_shared_memory_is_a_volume() -> None:
    (shm,) = [volume for volume in pod(render())["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


def test_the_cpu_profile_needs_no_gpu_and_nothing_of_the_cluster() -> None:
    manifests = render("cpu-demo", operator=False)
    assert "nvidia.com/gpu" not in str(server(manifests)["resources"])
    assert "tolerations" not in pod(manifests)
    assert environment(server(manifests))["IDEOSERVE_DEVICE"] == "cpu"
    assert server(manifests)["args"][:2] == ["--model", "models/demo"]
    assert kinds(manifests) == {
        "Deployment",
        "Service",
        "ServiceAccount",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ConfigMap",
    }


@pytest.mark.parametrize(
    ("uri", "model", "volume"),
    [
        ("demo", "models/demo", None),
        ("hf://owner/name", "owner/name", None),
        ("pvc://claim", "/models/", {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}}),
        (
            "pvc://claim/a/b",
            "/models/a/b",
            {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}},
        ),
        ("oci://r.io/w:1", "/models", {"image": {"reference": "r.io/w:1", "pullPolicy": "IfNotPresent"}}),
        ("init://fp8", "/models/fp8", {"emptyDir": {"sizeLimit": "80Gi"}}),
    ],
)
def test_weights(uri: str, model: str, volume: dict[str, Any] | None) -> None:
    manifests = render(model__uri=uri, model__init__image="fetch:1")
    assert server(manifests)["args"][1] == model
    volumes = {entry.pop("name"): entry for entry in map(dict, pod(manifests)["volumes"])}
    assert volumes.get("weights") == volume
    mounts = [mount for mount in server(manifests)["volumeMounts"] if mount["name"] == "weights"]
    assert all(mount["readOnly"] for mount in mounts)
    assert len(mounts) == (volume is not None)
    assert ("initContainers" in pod(manifests)) == uri.startswith("init")


def test_secrets() -> None:
    manifests = render(
        model__uri="hf://owner/name", model__token__existingSecret="hub", apiKeys__existingSecret="keys"
    )
    variables = environment(server(manifests))
    assert variables["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert variables["IDEOSERVE_API_KEYS_FILE"] == "/keys/keys.json"
    (mount,) = [mount for mount in server(manifests)["volumeMounts"] if mount["name"] == "keys"]
    # A whole folder: a subPath would never see a rotated key.
    assert mount == {"name": "keys", "mountPath": "/keys", "readOnly": True}
    assert "Secret" not in kinds(manifests)


def test_secrets_of_settings_that_name_a_file() -> None:
    manifests = render.__wrapped__(secrets=["hive"], settings__hive_key_file="/secrets/hive/key")
    assert environment(server(manifests))["IDEOSERVE_HIVE_KEY_FILE"] == "/secrets/hive/key"
    assert {"name": "secret-hive", "mountPath": "/secrets/hive", "readOnly": True} in server(manifests)[
        "volumeMounts"
    ]
    (volume,) = [volume for volume in pod(manifests)["volumes"] if volume["name"] == "secret-hive"]
    assert volume["secret"]["secretName"] == "hive"


def test_the_restricted_pod_security_level() -> None:
    manifests = render(model__uri="init://fp8", model__init__image="fetch:1")
    spec = pod(manifests)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"] + spec["initContainers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
    allowed = {"emptyDir", "persistentVolumeClaim", "secret", "image", "configMap"}
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_rollout_without_a_spare_gpu() -> None:
    strategy = one(render(), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}
    assert one(render("cpu-demo"), "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 1
    assert one(render(), "Deployment")["spec"]["progressDeadlineSeconds"] == 1200


def test_disruption_and_spread() -> None:
    budget = one(render(), "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    spread = pod(render())["topologySpreadConstraints"]
    assert {rule["topologyKey"] for rule in spread} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    assert budget["selector"] == spread[0]["labelSelector"]
    assert "topologySpreadConstraints" not in pod(render(spread__host="", spread__zone=""))


def test_keda() -> None:
    manifests = render("gpu")
    scaled = one(manifests, "ScaledObject")["spec"]
    trigger, use = scaled["triggers"]
    series = '{namespace="ns",job="x-ideoserve"}'
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus-operated.monitoring:9090",
        "query": f"sum(ideoserve_backlog_seconds{series})",
        "threshold": "60",
        "ignoreNullValues": "false",
    }
    assert use["metadata"]["threshold"] == "0.8"
    assert scaled["fallback"] == {"failureThreshold": 3, "replicas": 2}
    assert scaled["cooldownPeriod"] == 300
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert "replicas" not in one(manifests, "Deployment")["spec"]


@pytest.mark.parametrize(("layout", "count", "threshold"), [("replicas", 4, "3.2"), ("split", 2, "0.8")])
def test_keda_counts_workers(layout: str, count: int, threshold: str) -> None:
    manifests = render("gpu", gpu__layout=layout, gpu__count=count)
    assert one(manifests, "ScaledObject")["spec"]["triggers"][1]["metadata"]["threshold"] == threshold


FROM_NOTHING = {
    "autoscaling__kind": "keda",
    "autoscaling__minReplicas": 0,
    "autoscaling__keda__wakeQuery": "sum(rate(gateway_requests_total[2m]))",
}


def test_keda_from_nothing() -> None:
    """Pods that are not there report nothing: no null, and somebody before them must wake the first."""
    backlog, use, wake = one(render(**FROM_NOTHING), "ScaledObject")["spec"]["triggers"]
    assert backlog["metadata"]["activationThreshold"] == "1"
    for own in (backlog, use):
        assert own["metadata"]["query"].endswith(" or vector(0)")
    assert wake["metadata"] == {
        "serverAddress": "http://prometheus-operated.monitoring:9090",
        "query": "clamp_max(sum(rate(gateway_requests_total[2m])), 1)",
        "threshold": "1",
        "activationThreshold": "0",
        "ignoreNullValues": "false",
    }


def test_no_alert_while_a_fleet_from_nothing_sleeps() -> None:
    """Nor for the start of its first pod."""

    def rule(manifests: tuple[Manifest, ...]) -> Manifest:
        rules = one(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
        (found,) = [rule for rule in rules if rule["alert"] == "IdeoserveNoReadyReplica"]
        return dict(found)

    assert "vector(0)" in rule(render("gpu"))["expr"]
    assert "vector(0)" not in rule(render(**FROM_NOTHING))["expr"]
    assert (rule(render("gpu"))["for"], rule(render(**FROM_NOTHING))["for"]) == ("2m", "1200s")


@pytest.mark.parametrize(("layout", "count", "gigabytes"), [("replicas", 4, 320), ("split", 2, 80)])
def test_the_memory_alert_divides_by_what_is_measured(layout: str, count: int, gigabytes: int) -> None:
    """A worker reports its own device, not the one of its unconditional transformer."""
    manifests = render(gpu__layout=layout, gpu__count=count)
    rules = one(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert f"/ {gigabytes << 30} >" in rules[-1]["expr"]


def test_hpa() -> None:
    manifests = render("multi-gpu")
    scaler = one(manifests, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == one(manifests, "Deployment")["metadata"]["name"]
    assert scaler["metrics"][0]["external"] == {
        "metric": {"name": "ideoserve_backlog_seconds", "selector": {"matchLabels": {"job": "x-ideoserve"}}},
        "target": {"type": "AverageValue", "averageValue": "20"},
    }
    assert "replicas" not in one(manifests, "Deployment")["spec"]
    assert one(render(), "Deployment")["spec"]["replicas"] == 1


def test_network_policy() -> None:
    spec = one(render(), "NetworkPolicy")["spec"]
    gateway, prometheus = spec["ingress"]
    assert gateway["from"] == [{"namespaceSelector": {}}]
    assert (
        prometheus["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        == "monitoring"
    )
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53]
    hub = one(render(model__uri="hf://owner/name"), "NetworkPolicy")["spec"]
    assert [port["port"] for rule in hub["egress"] for port in rule["ports"]] == [53, 53, 443]


def test_routes_outlast_a_request() -> None:
    """And longer than queueing and rendering may take; streams pass unbuffered; /metrics stays inside."""
    route = one(render("gpu"), "HTTPRoute")["spec"]["rules"][0]
    assert route["timeouts"] == {"request": "330s", "backendRequest": "330s"}
    assert [match["path"]["value"] for match in route["matches"]] == ["/v1"]
    ingress = one(render("multi-gpu"), "Ingress")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "330"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def test_monitoring_is_there_where_the_operator_is() -> None:
    watch = {"ServiceMonitor", "PrometheusRule"}
    assert watch <= kinds(render())
    assert not watch & kinds(render(operator=False))
    assert watch <= kinds(render(operator=False, serviceMonitor__enabled=True, prometheusRule__enabled=True))
    assert not watch & kinds(render(serviceMonitor__enabled=False, prometheusRule__enabled=False))


def test_one_resource_a_file() -> None:
    from tests.deploy.chart import CHART

    for file in (CHART / "templates").glob("*.yaml"):
        assert file.read_text().count("apiVersion: ") <= 1 + file.read_text().count("scaleTargetRef:"), file


def test_the_selectors_meet() -> None:
    manifests = render("gpu")
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert one(manifests, "Service")["spec"]["selector"].items() <= labels
    for kind in ("PodDisruptionBudget", "Deployment"):
        assert one(manifests, kind)["spec"]["selector"]["matchLabels"].items() <= labels
    assert one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels
    service = one(manifests, "Service")["metadata"]["labels"].items()
    assert one(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= service
