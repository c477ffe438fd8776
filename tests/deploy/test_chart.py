"""Tests of the manifests that the chart renders."""

import math
from pathlib import Path
from typing import Any

import pytest

from server.queue import names
from server.settings.settings import read_settings
from tests.deploy.chart import CHART, PROFILES, Manifest, environment, helm, kinds, one, pod, render, server


def test_readiness_and_liveness_tolerate_slow_answers() -> None:
    """On a loaded node an answer may take seconds. A restart costs a model load."""
    ready, live = (server(render())[f"{name}Probe"] for name in ("readiness", "liveness"))
    assert (ready["httpGet"]["path"], live["httpGet"]["path"]) == ("/readyz", "/healthz")
    assert (ready["periodSeconds"], ready["timeoutSeconds"], ready["failureThreshold"]) == (5, 5, 3)
    assert (live["periodSeconds"], live["timeoutSeconds"], live["failureThreshold"]) == (10, 10, 6)
    assert not {"initialDelaySeconds"} & {*ready, *live}


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({"model__uri": "pvc://claim"}, 600),
        ({"model__uri": "hf://owner/name"}, 600 + 1200),
        ({"model__uri": "hf://owner/name", "startupSeconds": 60, "model__downloadSeconds": 7200}, 7260),
    ],
)
def test_the_startup_probe_outlasts_a_download(values: dict[str, Any], seconds: int) -> None:
    start = server(render(**values))["startupProbe"]
    assert start["httpGet"]["path"] == "/healthz"
    assert start["periodSeconds"] * start["failureThreshold"] == seconds
    assert start["timeoutSeconds"] == 5


def test_the_default_startup_probe_allows_53_gb_at_50_mb_per_second() -> None:
    start = server(render(model__uri="hf://owner/name"))["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] - 600 >= 53e9 / 50e6


@pytest.mark.parametrize(
    ("uri", "seconds"), [("pvc://claim", 1200), ("hf://owner/name", 2400), ("init://fp8", 2400)]
)
def test_the_rollout_deadline_outlasts_a_download(uri: str, seconds: int) -> None:
    deployment = one(render(model__uri=uri, model__init__image="fetch:1"), "Deployment")
    assert deployment["spec"]["progressDeadlineSeconds"] == seconds


def test_the_server_listens_on_ipv4_and_ipv6() -> None:
    assert _host(render()) == "::"
    assert _host(render(host="0.0.0.0")) == "0.0.0.0"


def _host(manifests: tuple[Manifest, ...]) -> str:
    arguments = server(manifests)["args"]
    return str(arguments[arguments.index("--host") + 1])


def test_pods_have_no_service_link_variables() -> None:
    """A Service called `ideoserve` would set IDEOSERVE_PORT=tcp://..., which the server reads as --port."""
    assert pod(render())["enableServiceLinks"] is False


def test_service_account() -> None:
    account = one(render(), "ServiceAccount")
    assert account["metadata"]["name"] == pod(render())["serviceAccountName"] == "x-ideoserve"
    assert account["automountServiceAccountToken"] is False
    assert "annotations" not in account["metadata"]


def test_service_account_annotations() -> None:
    """IRSA, GKE and Azure workload identity read annotations of the account; Azure a label of the pod too."""
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/images"}
    use = {"azure.workload.identity/use": "true"}
    manifests = render.__wrapped__(serviceAccount__annotations=role, podLabels=use)
    assert one(manifests, "ServiceAccount")["metadata"]["annotations"] == role
    template = one(manifests, "Deployment")["spec"]["template"]
    assert use.items() <= template["metadata"]["labels"].items()
    assert template["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"serviceAccount__create": False, "serviceAccount__name": "existing"}, "existing"),
        ({"serviceAccount__create": False}, "default"),
        ({"serviceAccount__name": "mine"}, "mine"),
    ],
)
def test_service_account_name(values: dict[str, Any], name: str) -> None:
    manifests = render(**values)
    assert pod(manifests)["serviceAccountName"] == name
    assert ("ServiceAccount" in kinds(manifests)) == values.get("serviceAccount__create", True)


def test_the_pod_runs_as_the_user_of_the_image() -> None:
    context = pod(render())["securityContext"]
    assert {context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}


def test_large_ids_stay_integers(tmp_path: Path) -> None:
    """OpenShift assigns ids such as 1000660000; helm reads numbers as floats."""
    file = tmp_path / "values.yaml"
    file.write_text("podSecurityContext: {runAsUser: 1000660000, fsGroup: null}")
    text = helm("template", "x", str(CHART), "--values", str(file))
    assert "runAsUser: 1000660000\n" in text
    assert "fsGroup: " not in text


def test_openshift_chooses_the_ids() -> None:
    """The restricted SCC rejects fixed ids. Everything else of the restricted level stays."""
    context = pod(render("openshift"))["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(context)
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_drain() -> None:
    manifests = render(settings__max_request_seconds=100, drain__preStopSeconds=15)
    assert pod(manifests)["terminationGracePeriodSeconds"] == math.ceil((15 + 5 + 100) * 1.5)
    assert server(manifests)["lifecycle"]["preStop"] == {"sleep": {"seconds": 15}}
    assert environment(server(manifests))["IDEOSERVE_DRAIN_DELAY_SECONDS"] == "5"


def test_preStop_before_kubernetes_1_30() -> None:
    hook = server(render(kubernetes="1.29"))["lifecycle"]["preStop"]
    assert hook == {"exec": {"command": ["sleep", "10"]}}


def test_the_server_reads_every_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for manifests in map(render, (None, *PROFILES)):
        for deployment in (each for each in manifests if each["kind"] == "Deployment"):
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            with monkeypatch.context() as patch:
                for name, value in environment(container).items():
                    patch.setenv(name, str(value))
                settings = read_settings(["--model", "x"])
            assert settings.drain_delay_seconds == 5
            assert settings.max_request_seconds == 300


def test_large_integers_in_a_values_file_stay_integers(tmp_path: Path) -> None:
    """helm reads them as floats and would print 2.097152e+06, which is no integer to the server."""
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


def test_shared_memory_is_a_memory_volume() -> None:
    (shm,) = [volume for volume in pod(render())["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


def test_the_cpu_profile_needs_no_gpu_and_no_custom_resources() -> None:
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
        ("hf://owner/name@v1.0", "owner/name@v1.0", None),
        ("hf://owner/name@refs/pr/1", "owner/name@refs/pr/1", None),
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
    # Mounts the whole folder: a subPath mount is not updated when the Secret changes.
    assert mount == {"name": "keys", "mountPath": "/keys", "readOnly": True}
    assert "Secret" not in kinds(manifests)


def test_secrets_are_mounted_for_settings_that_name_a_file() -> None:
    manifests = render.__wrapped__(secrets=["hive"], settings__hive_key_file="/secrets/hive/key")
    assert environment(server(manifests))["IDEOSERVE_HIVE_KEY_FILE"] == "/secrets/hive/key"
    assert {"name": "secret-hive", "mountPath": "/secrets/hive", "readOnly": True} in server(manifests)[
        "volumeMounts"
    ]
    (volume,) = [volume for volume in pod(manifests)["volumes"] if volume["name"] == "secret-hive"]
    assert volume["secret"]["secretName"] == "hive"


@pytest.mark.parametrize(
    ("uri", "store", "claim"),
    [
        ("pvc://claim", "file:///store/", "claim"),
        ("pvc://claim/images", "file:///store/images", "claim"),
        ("s3://bucket/images", "s3://bucket/images", None),
    ],
)
def test_stored_images(uri: str, store: str, claim: str | None) -> None:
    manifests = render(store__uri=uri, store__urlSecret__existingSecret="urls")
    variables = environment(server(manifests))
    assert variables["IDEOSERVE_STORE"] == store
    assert variables["IDEOSERVE_URL_SECRET"] == {"secretKeyRef": {"name": "urls", "key": "secret"}}
    volumes = [volume for volume in pod(manifests)["volumes"] if volume["name"] == "store"]
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in volumes] == ([claim] if claim else [])
    mounts = [mount for mount in server(manifests)["volumeMounts"] if mount["name"] == "store"]
    assert mounts == ([{"name": "store", "mountPath": "/store"}] if claim else [])
    assert "IDEOSERVE_STORE" not in environment(server(render()))


@pytest.mark.parametrize(
    ("uri", "path"), [("pvc://styles", "/adapters/"), ("pvc://styles/a/b.json", "/adapters/a/b.json")]
)
def test_adapters_are_mounted_in_all_pods(uri: str, path: str) -> None:
    manifests = render(adapters__uri=uri, queue__url="nats://nats:4222")
    for name in ("front", "worker"):
        pods = component(manifests, name)["spec"]["template"]["spec"]
        (container,) = pods["containers"]
        assert environment(container)["IDEOSERVE_ADAPTERS"] == path
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "adapters"]
        assert mount == {"name": "adapters", "mountPath": "/adapters", "readOnly": True}
        (volume,) = [volume for volume in pods["volumes"] if volume["name"] == "adapters"]
        assert volume["persistentVolumeClaim"] == {"claimName": "styles", "readOnly": True}
    assert "IDEOSERVE_ADAPTERS" not in environment(server(render()))


def component(manifests: tuple[Manifest, ...], name: str) -> Manifest:
    """The Deployment of the fronts or the workers of a fleet."""
    key = "app.kubernetes.io/component"
    (found,) = [
        each
        for each in manifests
        if each["kind"] == "Deployment" and each["spec"]["selector"]["matchLabels"][key] == name
    ]
    return found


def containers(manifests: tuple[Manifest, ...]) -> dict[str, Manifest]:
    return {
        name: component(manifests, name)["spec"]["template"]["spec"]["containers"][0]
        for name in ("front", "worker")
    }


def test_a_fleet_has_fronts_without_gpus_and_workers_with_them() -> None:
    manifests = render("fleet")
    front, worker = containers(manifests).values()
    for name, container in containers(manifests).items():
        variables = environment(container)
        assert (variables["IDEOSERVE_QUEUE"], variables["IDEOSERVE_ROLE"]) == ("nats://nats.nats:4222", name)
        assert variables["IDEOSERVE_QUEUE_CREDENTIALS_FILE"] == "/secrets/nats/nats.creds"
        assert "weights" in {mount["name"] for mount in container["volumeMounts"]}
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in str(front["resources"])
    assert not {"IDEOSERVE_DEVICE", "IDEOSERVE_DEVICES"} & environment(front).keys()
    spec = component(manifests, "front")["spec"]
    assert "tolerations" not in spec["template"]["spec"]
    assert (spec["replicas"], spec["strategy"]["rollingUpdate"]) == (2, {"maxSurge": 1, "maxUnavailable": 0})
    # What only the API needs stays off the workers.
    assert "IDEOSERVE_API_KEYS_FILE" in environment(front)
    assert "IDEOSERVE_API_KEYS_FILE" not in environment(worker)
    assert "keys" not in {mount["name"] for mount in worker["volumeMounts"]}


def test_the_parts_of_a_fleet_select_their_pods() -> None:
    manifests = render("fleet")
    key = "app.kubernetes.io/component"
    services = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"}
    assert services["x-ideoserve"]["selector"][key] == "front"
    assert (services["x-ideoserve-worker"]["selector"][key], services["x-ideoserve-worker"]["clusterIP"]) == (
        "worker",
        "None",
    )
    budgets = [each["spec"]["selector"] for each in manifests if each["kind"] == "PodDisruptionBudget"]
    assert {budget["matchLabels"][key] for budget in budgets} == {"front", "worker"}
    for name in ("front", "worker"):
        spec = component(manifests, name)["spec"]
        labels = spec["template"]["metadata"]["labels"].items()
        assert spec["selector"]["matchLabels"].items() <= labels
        spread = spec["template"]["spec"]["topologySpreadConstraints"][0]
        assert spread["labelSelector"] == spec["selector"]
    assert one(manifests, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == "x-ideoserve"
    assert component(manifests, "worker")["metadata"]["name"] == "x-ideoserve"


def test_without_a_queue_there_is_one_kind_of_pods() -> None:
    manifests = render()
    assert len([each for each in manifests if each["kind"] in ("Deployment", "Service")]) == 2
    assert not {"IDEOSERVE_QUEUE", "IDEOSERVE_ROLE"} & environment(server(manifests)).keys()


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("nats://nats.nats:4222", [4222]),
        ("nats://a", [4222]),
        ("tls://a:5222,tls://b:5222,tls://c:6222", [5222, 6222]),
    ],
)
def test_the_network_policy_allows_the_queue(url: str, ports: list[int]) -> None:
    egress = one(render(queue__url=url), "NetworkPolicy")["spec"]["egress"]
    assert [port["port"] for port in egress[1]["ports"]] == ports


def test_keda_scales_workers_on_the_queue() -> None:
    backlog, _, *queued = one(render("fleet"), "ScaledObject")["spec"]["triggers"]
    assert 'component="front"' in backlog["metadata"]["query"]
    assert [each["type"] for each in queued] == ["nats-jetstream"] * 2
    assert queued[0]["metadata"] == {
        "natsServerMonitoringEndpoint": "nats-headless.nats:8222",
        "account": "$G",
        "stream": names.WORK.name,
        "consumer": names.consumer("ideogram-4", "interactive"),
        "lagThreshold": "8",
    }


@pytest.mark.parametrize("model", ["ideogram-4", "owner/name", "a b.c", "x/" * 50, "m" * 200])
def test_the_consumers_have_the_names_that_workers_give_them(model: str) -> None:
    triggers = one(render("fleet", model__name=model), "ScaledObject")["spec"]["triggers"]
    consumers = [each["metadata"]["consumer"] for each in triggers if each["type"] == "nats-jetstream"]
    assert consumers == [names.consumer(model, priority) for priority in ("interactive", "batch")]


def test_metrics_of_a_fleet_tell_fronts_from_workers() -> None:
    (endpoint,) = one(render("fleet"), "ServiceMonitor")["spec"]["endpoints"]
    assert [each["targetLabel"] for each in endpoint["relabelings"]] == ["job", "component"]
    assert endpoint["relabelings"][0]["replacement"] == "x-ideoserve"
    assert "relabelings" not in one(render(), "ServiceMonitor")["spec"]["endpoints"][0]


def test_pods_meet_the_restricted_pod_security_level() -> None:
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


def test_rollouts_need_no_spare_gpu() -> None:
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
def test_the_keda_threshold_counts_workers(layout: str, count: int, threshold: str) -> None:
    manifests = render("gpu", gpu__layout=layout, gpu__count=count)
    assert one(manifests, "ScaledObject")["spec"]["triggers"][1]["metadata"]["threshold"] == threshold


FROM_ZERO = {
    "autoscaling__kind": "keda",
    "autoscaling__minReplicas": 0,
    "autoscaling__keda__wakeQuery": "sum(rate(gateway_requests_total[2m]))",
}


def test_keda_scales_from_zero() -> None:
    """Without pods there are no series: queries default to 0, and the wake query starts the first pod."""
    backlog, use, wake = one(render(**FROM_ZERO), "ScaledObject")["spec"]["triggers"]
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


def test_a_fleet_scaled_to_zero_does_not_alert() -> None:
    """The start of its first pod does not either."""

    def rule(manifests: tuple[Manifest, ...]) -> Manifest:
        rules = one(manifests, "PrometheusRule")["spec"]["groups"][0]["rules"]
        (found,) = [rule for rule in rules if rule["alert"] == "IdeoserveNoReadyReplica"]
        return dict(found)

    assert "vector(0)" in rule(render("gpu"))["expr"]
    assert "vector(0)" not in rule(render(**FROM_ZERO))["expr"]
    assert (rule(render("gpu"))["for"], rule(render(**FROM_ZERO))["for"]) == ("2m", "1200s")


@pytest.mark.parametrize(("layout", "count", "gigabytes"), [("replicas", 4, 320), ("split", 2, 80)])
def test_the_memory_alert_divides_by_the_measured_devices(layout: str, count: int, gigabytes: int) -> None:
    """A worker reports its main device, not the device of the unconditional transformer."""
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


def test_routes_outlast_a_request_and_do_not_buffer() -> None:
    route = one(render("gpu"), "HTTPRoute")["spec"]["rules"][0]
    assert route["timeouts"] == {"request": "330s", "backendRequest": "330s"}
    assert [match["path"]["value"] for match in route["matches"]] == ["/v1"]
    ingress = one(render("multi-gpu"), "Ingress")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "330"
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def test_monitoring_follows_the_prometheus_operator() -> None:
    watch = {"ServiceMonitor", "PrometheusRule"}
    assert watch <= kinds(render())
    assert not watch & kinds(render(operator=False))
    assert watch <= kinds(render(operator=False, serviceMonitor__enabled=True, prometheusRule__enabled=True))
    assert not watch & kinds(render(serviceMonitor__enabled=False, prometheusRule__enabled=False))


def test_each_template_has_one_resource() -> None:
    for file in (CHART / "templates").glob("*.yaml"):
        assert file.read_text().count("apiVersion: ") <= 1 + file.read_text().count("scaleTargetRef:"), file


def test_selectors_match_the_labels() -> None:
    manifests = render("gpu")
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert one(manifests, "Service")["spec"]["selector"].items() <= labels
    for kind in ("PodDisruptionBudget", "Deployment"):
        assert one(manifests, kind)["spec"]["selector"]["matchLabels"].items() <= labels
    assert one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels
    service = one(manifests, "Service")["metadata"]["labels"].items()
    assert one(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= service
