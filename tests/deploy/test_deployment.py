"""The files that deploy: they parse, name what exists, and keep to what they promise."""

import ast
import dataclasses
import json
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import serving.engine  # noqa: F401
from serving import metrics
from serving.config import ServerConfig
from serving.service import Service
from ui import counts

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifest(kind):
    [found] = [d for path in MANIFESTS for d in documents(path) if d["kind"] == kind]
    return found


def required(name, seen=()):
    """Names of the packages of a requirements file and of those it includes."""
    for line in (ROOT / name).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r"):
            yield from required(line.split()[1])
        elif line:
            yield re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-")


@pytest.mark.parametrize(
    ("room", "file"),
    [("serving", "requirements-server.txt"), ("ui", "requirements-ui.txt")],
)
def test_an_image_has_what_its_room_imports(room, file):
    paths = [p for p in (ROOT / room).rglob("*.py") if p.name != "client.py"]
    if room == "ui":
        paths.append(ROOT / "serving" / "client.py")
    packages, known = packages_distributions(), set(required(file))
    for path in paths:
        tree = ast.parse(path.read_text())
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
        for name in {n.partition(".")[0] for n in names} - {"serving", "model", "ui"}:
            if name in sys.stdlib_module_names or name == "opentelemetry":  # an extra
                continue
            owners = {owner.lower().replace("_", "-") for owner in packages.get(name, [name])}
            assert owners & known, f"{path.relative_to(ROOT)} imports {name}; put it into {file}"


def test_the_pages_are_served_without_tensorflow():
    assert not [name for name in required("requirements-ui.txt") if "tensorflow" in name]


def stages():
    found, name = {}, None
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            name = match[2]
            found[name] = {"from": match[1], "lines": []}
        elif line and not line.startswith("#") and name:
            found[name]["lines"].append(line)
    return found


@pytest.mark.parametrize("name", ["server", "ui", "train"])
def test_an_image_runs_as_a_user_and_hears_signals(name):
    lines = stages()[name]["lines"]
    assert "USER 10001" in lines
    assert lines.index("USER 10001") < min(
        i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT")
    )
    [entry] = [line for line in lines if line.startswith("ENTRYPOINT")]
    assert json.loads(entry.removeprefix("ENTRYPOINT "))[:2] == ["python", "-m"]  # no shell
    assert not any("pip install" in line or "apt-get" in line for line in lines)
    assert name == "train" or any(line.startswith("HEALTHCHECK") for line in lines)


def test_the_server_is_built_by_default_and_what_is_copied_exists():
    assert list(stages())[-1] == "server"
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for stage in stages().values():
        for line in stage["lines"]:
            if line.startswith("COPY") and "--from" not in line:
                for source in line.split()[1:-1]:
                    assert (ROOT / source).exists(), line
                    top = source.partition("/")[0]
                    assert f"!{top}" in kept or top.startswith("requirements"), line


def test_compose_keeps_every_service_small_and_local():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert {"serving", "door", "ui", "embedded", "embedded-ui"} == set(services)
    for name, service in services.items():
        assert service["read_only"] and service["mem_limit"] and service["init"], name
        assert all(p.startswith("127.0.0.1:") for p in service.get("ports", [])), name
    assert "ports" not in services["serving"]
    assert services["serving"]["entrypoint"] == ["tensorflow_model_server"]


def test_flags_that_are_deployed_are_the_servers_own():
    known = {"--models"} | {
        "--" + (f.name if "mark" in f.metadata else f.name.replace("_", "-"))
        for f in dataclasses.fields(ServerConfig)
    }
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    container = manifest("Deployment")["spec"]["template"]["spec"]["containers"][0]
    ours = [services[n]["entrypoint"][3:] + services[n]["command"] for n in ("door", "embedded")]
    for words in (*ours, container["args"]):
        for word in words:
            assert word.partition("=")[0] in known, word


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_names_its_kind(path):
    for document in documents(path):
        assert document["apiVersion"] and document["kind"]


def test_kustomization_lists_every_manifest():
    listed = documents(KUBERNETES / "kustomization.yaml")[0]["resources"]
    assert set(listed) == {path.name for path in MANIFESTS} - {"kustomization.yaml"}


def test_a_pod_is_drained_before_it_is_killed():
    spec = manifest("Deployment")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    [drain] = [a for a in container["args"] if a.startswith("--drain-seconds=")]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert float(drain.partition("=")[2]) + pause < spec["terminationGracePeriodSeconds"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_ports_volumes_and_labels_of_the_manifests_fit_together():
    label = {"app.kubernetes.io/name": "stepwise"}
    deployment = manifest("Deployment")["spec"]
    assert deployment["template"]["metadata"]["labels"] == label
    assert deployment["selector"]["matchLabels"] == label
    assert manifest("Service")["spec"]["selector"] == label
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == label
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == label
    spec = manifest("Deployment")["spec"]["template"]["spec"]
    ports = {port["name"] for port in spec["containers"][0]["ports"]}
    assert {port["targetPort"] for port in manifest("Service")["spec"]["ports"]} <= ports
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == volumes
    claim = manifest("PersistentVolumeClaim")["metadata"]["name"]
    assert any(
        v.get("persistentVolumeClaim", {}).get("claimName") == claim for v in spec["volumes"]
    )
    kserve = documents(ROOT / "deploy" / "kserve" / "inferenceservice.yaml")[0]
    assert claim in kserve["spec"]["predictor"]["model"]["storageUri"]


def test_the_autoscaler_reads_what_a_rule_records():
    [metric] = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    groups = documents(ROOT / "deploy" / "monitoring" / "rules.yaml")[0]["groups"]
    recorded = [rule.get("record") for group in groups for rule in group["rules"]]
    assert metric["pods"]["metric"]["name"] in recorded


def test_rules_dashboard_and_pages_read_metrics_that_the_server_has():
    Service(None)  # which puts gauges on the page, as the engine does
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", metrics.page(), re.MULTILINE))
    groups = documents(ROOT / "deploy" / "monitoring" / "rules.yaml")[0]["groups"]
    dashboard = json.loads((ROOT / "deploy" / "monitoring" / "dashboard.json").read_text())
    queries = [rule["expr"] for group in groups for rule in group["rules"]]
    queries += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for query in queries for name in re.findall(r":(?:\w+:)+\w+", query)}
    assert len(names) >= 20
    for name in names:
        whole, _, part = name.rpartition("_")
        is_part = part in ("bucket", "sum", "count") and kinds.get(whole) == "histogram"
        assert is_part or kinds.get(name) in ("counter", "gauge"), name
    assert {counts.OURS + name for name in counts.NAMES} <= kinds.keys()  # those of the pages
