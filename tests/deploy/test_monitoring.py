"""Test alerts with promtool. Check the metrics of alerts and dashboard against /metrics of a server."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.deploy.chart import CHART, HERE, REPOSITORY, one, render
from tests.server.process import ServerProcess

DASHBOARD = json.loads((CHART / "dashboards/ideoserve.json").read_text())
# By profile; each has a file of cases, that of a fleet for the rules that are not the same.
CASES = {"gpu": "alerts.yaml", "fleet": "fleet-alerts.yaml"}


def rules_of(profile: str) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = one(render(profile), "PrometheusRule")["spec"]["groups"][0]["rules"]
    return rules


RULES = rules_of("gpu") + [rule for rule in rules_of("fleet") if rule not in rules_of("gpu")]
# `process_*` metrics come from prometheus_client.
METRIC = re.compile(r"\b(?:ideoserve|process)_[a-z_]+\b")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """/metrics of a server with every part that exports some, which has generated one image and called an
    unreachable service."""
    folder = tmp_path_factory.mktemp("server")
    process = ServerProcess(
        "--prompt-moderation=webhook",
        "--moderation-webhook-url=http://127.0.0.1:9",
        "--moderation-failure=open",
        f"--store=file://{folder}/images",
        "--queue=embedded",
        f"--queue-dir={folder}/queue",
    )
    assert process.create().status_code == 200
    yield process.http.get("/metrics").text
    process.close()


def _expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def _series(metrics: str) -> set[str]:
    """Return the names of the samples."""
    return {line.partition("{")[0].partition(" ")[0] for line in metrics.splitlines() if line[0] != "#"}


def _label_names(metrics: str) -> set[str]:
    return set(re.findall(r'[{,]([a-z_]+)="', metrics))


@pytest.fixture(params=CASES)
def rules(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the rules of a profile, and their cases."""
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "x", "rules": rules_of(request.param)}]})
    )
    (tmp_path / "alerts.yaml").write_text((HERE / CASES[request.param]).read_text())
    return tmp_path


def _promtool(folder: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, input=stdin)


def test_the_rules_are_valid(rules: Path) -> None:
    done = _promtool(rules, "check", "rules", "--lint-fatal", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_fire_as_expected(rules: Path) -> None:
    done = _promtool(rules, "test", "rules", "alerts.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_firing_and_a_silent_case(rule: dict[str, Any]) -> None:
    cases = yaml.safe_load((HERE / CASES["gpu" if rule in rules_of("gpu") else "fleet"]).read_text())
    expected = [
        bool(check["exp_alerts"])
        for case in cases["tests"]
        for check in case["alert_rule_test"]
        if check["alertname"] == rule["alert"]
    ]
    assert set(expected) == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_is_in_the_runbook(rule: dict[str, Any]) -> None:
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (REPOSITORY / file).read_text(), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]
    assert rule["alert"] in headings


def test_each_alert_uses_existing_metrics(exported: str) -> None:
    for rule in RULES:
        assert set(METRIC.findall(rule["expr"])) <= _series(exported), rule["alert"]


def test_the_autoscaler_uses_existing_metrics(exported: str) -> None:
    triggers = [each for name in CASES for each in one(render(name), "ScaledObject")["spec"]["triggers"]]
    for query in (each["metadata"]["query"] for each in triggers if each["type"] == "prometheus"):
        promql_parser.parse(query)
        assert set(METRIC.findall(query)) <= _series(exported)


def test_the_error_alert_counts_the_documented_failures() -> None:
    (rule,) = [rule for rule in rules_of("gpu") if rule["alert"] == "IdeoserveErrors"]
    found = re.search(r'outcome=~"([^"]*)"', rule["expr"])
    assert found
    documented = (REPOSITORY / "docs/http.md").read_text()
    rows = [line for line in documented.splitlines() if re.match(r"\| 5\d\d ", line)]
    codes = {code for line in rows for code in re.findall(r"`([a-z]+_[a-z_]+)`", line.rpartition("|")[0])}
    # The balancer sends these to another replica; the alert IdeoserveQueueDown tells of a queue that is away.
    retried = {
        "model_not_ready",
        "adapter_not_ready",
        "server_draining",
        "body_memory_full",
        "upload_memory_full",
        "too_many_connections",
    }
    others = {"http_version_not_supported", "queue_unavailable"}
    assert set(found.group(1).split("|")) == codes - retried - others


def test_metrics_pass_promtool(exported: str) -> None:
    done = _promtool(HERE, "check", "metrics", stdin=exported)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("expression", _expressions())
def test_each_expression_of_the_dashboard(expression: str, exported: str) -> None:
    """It parses, and its metrics and labels exist. The scrape adds namespace, job and pod."""
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    names = set(METRIC.findall(expression))
    assert names
    assert names <= _series(exported)
    grouped = re.findall(r"by \(([a-z_, ]+)\)", expression)
    labels = {label.strip() for group in grouped for label in group.split(",")}
    assert labels <= _label_names(exported) | {"pod"}


def test_a_broken_expression_does_not_parse() -> None:
    with pytest.raises(ValueError, match=r"unexpected|unclosed|invalid"):
        promql_parser.parse(_expressions()[0].replace("(", "", 1))


def test_the_dashboards_variables_are_defined() -> None:
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$(\w+)", json.dumps(DASHBOARD))) <= defined


def test_the_panels_do_not_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


def test_the_config_map_contains_the_dashboard() -> None:
    config = one(render(), "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["x-ideoserve.json"]) == DASHBOARD
