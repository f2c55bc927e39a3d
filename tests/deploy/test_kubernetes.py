"""The manifests of deploy/kubernetes: held to the schemas of their kinds, and to each other."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate, or make deploy-check")
jsonschema = pytest.importorskip("jsonschema")

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
KUSTOMIZE = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
needs_kustomize = pytest.mark.skipif(
    shutil.which(KUSTOMIZE[0]) is None, reason="neither kustomize nor kubectl is installed"
)
POD: dict[str, Any] = {"type": "object", "required": ["spec"], "properties": {"metadata": {}, "spec": {}}}


def fields(required: list[str], **properties: Any) -> dict[str, Any]:
    """The schema of an object that has no other fields."""
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def kind(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        ["apiVersion", "kind", "metadata", "spec"], apiVersion={}, kind={"const": name}, metadata={}, spec=spec
    )


# The fields of kinds that are no part of Kubernetes, after the types of their projects: LeaderWorkerSet 0.8, the
# Prometheus operator 0.85 and KEDA 2.17. Pod templates are held to Kubernetes' own schema.
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
SCHEMAS: dict[str, dict[str, Any]] = {
    "leaderworkerset.x-k8s.io/v1": kind(
        "LeaderWorkerSet",
        fields(
            ["leaderWorkerTemplate"],
            replicas={"type": "integer", "minimum": 0},
            startupPolicy={"enum": ["LeaderReady", "LeaderCreated"]},
            leaderWorkerTemplate=fields(
                ["workerTemplate"],
                size={"type": "integer", "minimum": 1},
                restartPolicy={"enum": ["RecreateGroupOnPodRestart", "None"]},
                leaderTemplate=POD,
                workerTemplate=POD,
            ),
        ),
    ),
    "monitoring.coreos.com/v1": kind(
        "PodMonitor",
        fields(
            ["selector", "podMetricsEndpoints"],
            selector=fields(["matchLabels"], matchLabels=LABELS),
            podMetricsEndpoints={
                "type": "array",
                "items": fields(
                    ["port"],
                    port={"type": "string"},
                    path={"type": "string"},
                    interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                ),
            },
        ),
    ),
    "keda.sh/v1alpha1": kind(
        "ScaledObject",
        fields(
            ["scaleTargetRef", "triggers"],
            scaleTargetRef=fields(["name"], apiVersion={}, kind={}, name={"type": "string"}),
            minReplicaCount={"type": "integer", "minimum": 0},
            maxReplicaCount={"type": "integer", "minimum": 1},
            cooldownPeriod={"type": "integer"},
            triggers={
                "type": "array",
                "items": fields(
                    ["type", "metadata"],
                    type={"const": "prometheus"},
                    metadata=fields(
                        ["serverAddress", "query", "threshold"],
                        serverAddress={"type": "string"},
                        query={"type": "string"},
                        threshold={"type": "string"},
                    ),
                ),
            },
        ),
    ),
}


@pytest.fixture(params=[pytest.param(name, marks=needs_kustomize) for name in OVERLAYS])
def built(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The manifests of an overlay."""
    command = [*KUSTOMIZE, str(FOLDER / "overlays" / request.param)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [*yaml.safe_load_all(done.stdout)]


def one(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def templates(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pod templates of the leader and of the worker."""
    group = one(manifests, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    yield from (group["leaderTemplate"], group["workerTemplate"])


def check(manifest: dict[str, Any]) -> None:
    schema = SCHEMAS.get(manifest["apiVersion"])
    if schema is None:
        validate.validate(manifest, "1.30", strict=True)
    else:
        jsonschema.validate(manifest, schema)


@pytest.mark.parametrize(
    "path", [path for path in sorted(FOLDER.glob("*/*.yaml")) if "kustom" not in path.name and path.stem != "names"],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_each_file_has_the_fields_of_its_kind(path: Path) -> None:
    check(yaml.safe_load(path.read_text()))


def test_an_overlay_has_the_fields_of_its_kinds(built: list[dict[str, Any]]) -> None:
    for manifest in built:
        check(manifest)
    for template in templates(built):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}}
        validate.validate({**pod, "spec": template["spec"]}, "1.30", strict=True)


def test_a_field_that_is_unknown_is_found(built: list[dict[str, Any]]) -> None:
    """The test above can fail."""
    leader, _ = templates(built)
    leader["spec"]["containers"][0]["livenessProbe"]["periods"] = 1
    with pytest.raises(validate.ValidationError):
        test_an_overlay_has_the_fields_of_its_kinds(built)


def test_names_agree(built: list[dict[str, Any]]) -> None:
    """What one manifest says of another: ports, labels, volumes, and the hashed name of the scripts."""
    leader, worker = templates(built)
    [server], [ranks] = leader["spec"]["containers"], worker["spec"]["containers"]
    scripts = one(built, "ConfigMap")
    for container, template in ((server, leader), (ranks, worker)):
        probes = [container[name] for name in container if name.endswith("Probe")]
        asked = {(probe.get("httpGet") or probe["tcpSocket"])["port"] for probe in probes}
        assert asked <= {port["name"] for port in container["ports"]}
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert volumes["scripts"]["configMap"]["name"] == scripts["metadata"]["name"]
        assert Path(container["command"][-1]).name in scripts["data"]
        grace = template["spec"]["terminationGracePeriodSeconds"]
        assert grace > 10 + 60 + 30, "the pause before a drain, the drain, and the server's own end"
    assert "--drain-seconds 60" in scripts["data"]["leader.sh"]
    ports = {port["name"] for port in server["ports"]}
    labels = {"leaderworkerset.sigs.k8s.io/name": one(built, "LeaderWorkerSet")["metadata"]["name"], "role": "leader"}
    assert leader["metadata"]["labels"]["role"] == "leader"
    service, monitor = one(built, "Service")["spec"], one(built, "PodMonitor")["spec"]
    assert service["selector"] == monitor["selector"]["matchLabels"] == labels
    assert {port["targetPort"] for port in service["ports"]} | {monitor["podMetricsEndpoints"][0]["port"]} == ports


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("1", []),
        ("3", ["--hosts", "set-0:4,set-0-1.set.space:4,set-0-2.set.space:4", "--interface", "eth0"]),
    ],
)
def test_the_leader_starts_ranks_in_all_pods_of_its_group(size: str, wanted: list[str], tmp_path: Path) -> None:
    """With programs that print instead of `ssh`, which fails at first, and `trtllm-pt`."""
    for name, script in {
        "ssh": 'test -e "$HOME/tried" || { touch "$HOME/tried"; exit 255; }; echo "ssh $5" >> "$HOME/log"',
        "trtllm-pt": 'printf "%s\\n" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "ssh_config").touch()
    script = (FOLDER / "base" / "leader.sh").read_text().replace("/scripts", str(tmp_path))
    environment = {"LWS_LEADER_ADDRESS": "set-0.set.space", "LWS_GROUP_SIZE": size, "RANKS_PER_POD": "4"}
    environment |= {"INTERFACE": "eth0", "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    asked = ["serve", "/engine", "--host", "0.0.0.0", "--served-model-name", "demo", "--drain-seconds", "60"]
    assert done.stdout.splitlines() == [*asked, *wanted]
    assert (tmp_path / ".ssh" / "config").stat().st_mode & 0o777 == 0o600
    if wanted:
        assert (tmp_path / "log").read_text() == "ssh set-0-1.set.space\nssh set-0-2.set.space\n"
