"""The scripts of deploy/kubernetes on two nodes: a leader that serves, and a worker that waits with an sshd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nodes.cluster import Cluster, lacking
from tests.serving.conftest import needs_triton
from trtllm_pt.bench.netlab.links import DEVICE, Link, Links

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.skipif(lacking() is not None, reason=str(lacking())),
    needs_triton,
]
ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "deploy" / "kubernetes" / "base"
ASK = """
import json, sys, urllib.request
body = json.dumps({"prompt": "def main(", "max_tokens": int(sys.argv[1]), "ignore_eos": True, "stream": True}).encode()
request = urllib.request.Request("http://127.0.0.1:9000/v1/completions", body)
with urllib.request.urlopen(request, timeout=300) as answer:
    for line in answer:
        print(line.decode().strip(), flush=True)
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    pretrained = str(ROOT / "pretrained" / "stdlib-pt")
    for words in (["convert", pretrained, "-o", "checkpoint", "--ranks", "2"], ["build", "checkpoint", "-o", "engine"]):
        subprocess.run([sys.executable, "-m", "trtllm_pt", *words], cwd=folder, check=True)
    return folder / "engine"


def pod(folder: Path, engine: Path) -> Path:
    """A folder with what a pod has: the scripts, the key, and the programs of its image."""
    (folder / "scripts").mkdir()
    for source in (*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("ssh*_config")):
        text = source.read_text().replace("/scripts", f"{folder}/scripts").replace("/ssh/", f"{folder}/ssh/")
        (folder / "scripts" / source.name).write_text(text.replace("serve /engine", f"serve {engine}"))
    (folder / "ssh").mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh" / "key")], check=True)
    for name, program in {
        "ssh": '/usr/bin/ssh -F "$HOME/.ssh/config" "$@"',  # root's ssh does not look for its configuration in $HOME
        "trtllm-pt": f'{sys.executable} -m trtllm_pt "$@"',
    }.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/sh\nexec {program}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


@contextmanager
def started(cluster: Cluster, here: Path) -> Iterator[subprocess.Popen[str]]:
    """The leader on node 0, which serves, with a worker on node 1."""
    with (cluster.folder / "hosts").open("a") as hosts:
        hosts.write(f"{Links.address(1)} node0-1.set.space\n")
    settings = {"LWS_LEADER_ADDRESS": "node0.set.space", "LWS_GROUP_SIZE": "2", "RANKS_PER_POD": "1"}
    settings |= {"INTERFACE": DEVICE, "HOME": str(here), "PATH": f"{here}/bin:{os.environ['PATH']}"}
    worker = subprocess.Popen(cluster.enter(1, "sh", str(here / "scripts" / "worker.sh")))
    with cluster.start("sh", str(here / "scripts" / "leader.sh"), environment=settings) as leader:
        try:
            assert leader.stdout is not None
            lines = iter(leader.stdout.readline, "")
            assert any(line.startswith("curl") for line in lines), leader.communicate()[1]
            yield leader
        finally:
            leader.kill()
            worker.kill()
            worker.wait()


@pytest.mark.timeout(1200)
def test_the_leader_serves_with_the_worker_and_drains(engine: Path, tmp_path: Path) -> None:
    with Cluster(2, Link(50)) as cluster, started(cluster, pod(tmp_path, engine)) as leader:
        assert cluster.ranks(0) and len(cluster.ranks(1)) == 1
        with cluster.start(sys.executable, "-c", ASK, "400") as client:
            assert client.stdout is not None and client.stdout.readline().startswith("data: ")
            leader.send_signal(signal.SIGTERM)
            rest, said = client.communicate(timeout=120)
        events = [line.removeprefix("data: ") for line in rest.splitlines() if line]
        assert events[-1] == "[DONE]", said
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert leader.wait(120) == 0
        assert cluster.ranks(1) == []


def test_a_worker_that_ends_waits_for_its_ranks() -> None:
    """In a process namespace, where no other rank runs."""
    rank = f"{sys.executable} -c 'import time; time.sleep(2); print(1, flush=True)' trtllm_pt.runtime.worker & "
    script = f"{rank} sleep 0.5; sh {SCRIPTS / 'wait_for_ranks.sh'}; echo 2"
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-s",
    ]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1\n2\n"
