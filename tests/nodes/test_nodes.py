"""Ranks on several nodes, started by the real mpirun over ssh: the same bits, faults that name the node, restarts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.configs import SMALL
from tests.nodes.cluster import Cluster, lacking
from trtllm_pt.bench.netlab.links import DEVICE, Link
from trtllm_pt.checkpoint.init import init

pytestmark = [pytest.mark.nodes, pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]

MODEL = SMALL.replace(num_layers=8, hidden_size=64, num_kv_heads=4)
MODELS = {
    "tp": MODEL.replace(schedule="tp", tracks=1, block_depth=None),
    **{f"pt-d{depth}": MODEL.replace(block_depth=depth) for depth in (1, 2, 4, 8)},
}
GENERATE = """
import json, sys
from trtllm_pt import LLM, SamplingParams

for folder in sys.argv[2:]:
    with LLM(folder) as llm:
        print("ready", flush=True)
        results = llm.generate([[5, 6, 7, 8], [9]], SamplingParams(max_tokens=int(sys.argv[1]), log_probs=True))
        print(json.dumps([[each.token_ids, each.log_probs, each.sync_points_seen] for each in results]), flush=True)
"""
LONG = 100  # tokens, for which tp takes 16 s over a link of 10 ms: 8 layers with 2 all-reduces each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def engine(folder: Path, name: str, ranks: int) -> Path:
    built = folder / f"{name}-{ranks}"
    if not built.exists():
        checkpoint = folder / f"checkpoint-{name}-{ranks}"
        init(MODELS[name], checkpoint, ranks=ranks, dtype="float32")
        command = [sys.executable, "-m", "trtllm_pt", "build", str(checkpoint), "-o", str(built)]
        subprocess.run([*command, "--engine", "embedded", "--max_num_tokens", "128"], check=True)
    return built


def outputs(printed: str) -> list[Any]:
    return [json.loads(line) for line in printed.splitlines() if line != "ready"]


def on(cluster: Cluster, ranks: int) -> dict[str, str]:
    hosts = ",".join(f"{name}:{ranks}" for name in cluster.names)
    return {"TRTLLM_PT_HOSTS": hosts, "TRTLLM_PT_INTERFACE": DEVICE}


def generate(tokens: int, *engines: Path) -> list[str]:
    return [sys.executable, "-c", GENERATE, str(tokens), *map(str, engines)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("nodes", "each"), [(2, 1), (2, 2), (4, 1)])
def test_any_placement_and_any_delay_give_the_bits_of_one_machine(nodes: int, each: int, folder: Path) -> None:
    engines = [engine(folder, name, nodes * each) for name in MODELS]
    one = subprocess.run(generate(8, *engines), capture_output=True, text=True, check=True)
    for delay in (50, 1000, 10_000):
        with Cluster(nodes, Link(delay)) as cluster:
            done = cluster.run(*generate(8, *engines), environment=on(cluster, each), seconds=600)
            assert done.returncode == 0, done.stderr
            assert outputs(done.stdout) == outputs(one.stdout), f"{delay} us"
            assert all(not cluster.ranks(node) for node in range(nodes))


def test_a_node_with_fewer_ranks_gives_them_more_threads(folder: Path) -> None:
    built = engine(folder, "pt-d4", 4)
    one = subprocess.run(generate(8, built), capture_output=True, text=True, check=True)
    hosts = {"TRTLLM_PT_HOSTS": "node0:3,node1:1", "TRTLLM_PT_INTERFACE": DEVICE}
    command = [sys.executable, "-m", "trtllm_pt", "--log-level", "info", "run", str(built), *PROMPT]
    with Cluster(2, Link(50)) as cluster:
        done = cluster.run(*generate(8, built), environment=hosts, seconds=300)
        assert done.returncode == 0, done.stderr
        said = cluster.run(*command, "--hosts", hosts["TRTLLM_PT_HOSTS"], "--interface", DEVICE).stderr
    assert outputs(done.stdout) == outputs(one.stdout)
    threads = {int(rank): int(its) for rank, its in re.findall(r"engine loaded .*rank=(\d) threads=(\d+)", said)}
    cores = os.cpu_count() or 1
    assert threads == {0: max(1, cores // 3), 1: max(1, cores // 3), 2: max(1, cores // 3), 3: cores}, said


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Cluster]:
    engine(folder, "tp", 2)
    with Cluster(2, Link(10_000)) as cluster:
        yield cluster


@pytest.mark.parametrize("fault", ["the link is cut", "the node is killed", "a rank is killed"])
def test_a_lost_node_is_named_and_everything_ends(fault: str, two: Cluster, folder: Path) -> None:
    command = generate(LONG, folder / "tp-2")
    with two.start(*command, environment=on(two, 1)) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # the request is running
        began = time.monotonic()
        if fault == "the link is cut":
            two.cut(1)
        elif fault == "the node is killed":
            two.kill(1)
        else:
            subprocess.run(["kill", "-9", str(two.ranks(1)[0])], check=True)
        out, said = process.communicate(timeout=60)
        took = time.monotonic() - began
    if fault == "the link is cut":
        two.mend(1)
    elif fault == "the node is killed":
        two.boot(1)
    assert process.returncode == 1 and said, f"status {process.returncode}, printed {out!r}"
    last = said.splitlines()[-1]
    if fault == "the link is cut":
        assert last.endswith("RunError: node1 (rank 1) has not answered for 5 s; all ranks end")
    elif fault == "the node is killed":
        assert "RunError: mpirun has lost a host: node1 cannot be reached: ssh: connect to host node1 port 22" in last
    else:
        assert re.search(
            r"RunError: rank 1 \(process \d+ on node1\) (was killed by signal|exited with status) 9; all ranks", last
        )
    assert took < 10, "the promise of docs/nodes.md"
    deadline = time.monotonic() + 30
    while left := two.programs(0) + two.programs(1):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    again = two.run(*generate(2, folder / "tp-2"), environment=on(two, 1))
    assert again.returncode == 0, again.stderr


RUN = [sys.executable, "-m", "trtllm_pt", "run"]
PROMPT = ["5 6 7 8", "--max-tokens", "4", "--json"]
BOTH = ["--hosts", "node0:1,node1:1", "--interface", DEVICE]


def refused(cluster: Cluster, folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> str:
    done = cluster.run(*RUN, str(folder), *PROMPT, *options, environment=environment)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    [line] = [line for line in done.stderr.splitlines() if line]
    return line


@pytest.mark.parametrize(
    ("hosts", "interface", "said"),
    [
        ("node0:1,nowhere:1", DEVICE, r"nowhere cannot be reached: ssh: Could not resolve hostname nowhere"),
        ("node0:1,10.77.0.99:1", DEVICE, r"10\.77\.0\.99 cannot be reached: ssh: connect to host 10\.77\.0\.99"),
        ("node0:1", DEVICE, r"--hosts: 2 ranks are needed, but there is room for 1: node0 has 1"),
        ("node1:2", DEVICE, r"--hosts \(node1\): the first host must be this machine, node0"),
        ("node0:1,node1:1", "eth9", r"--interface \(eth9\): node0 has no such interface with an IPv4 address, only"),
    ],
)
def test_a_wrong_host(hosts: str, interface: str, said: str, two: Cluster, folder: Path) -> None:
    line = refused(two, folder / "tp-2", "--hosts", hosts, "--interface", interface)
    assert re.match(f"Error: {said}", line)


def test_a_node_that_differs(two: Cluster, folder: Path) -> None:
    """Node 1 has no engine, another one, another tokenizer, another instruction set, another version of the package."""
    own = two.disk / "engine"
    subprocess.run(two.enter(0, "cp", "-r", str(folder / "tp-2"), str(own)), check=True)
    line = refused(two, own, *BOTH)
    assert line.startswith("Error: node1: ") and str(own) in line

    subprocess.run(two.enter(1, "cp", "-r", str(folder / "tp-2"), str(own)), check=True)
    assert two.run(*RUN, str(own), *PROMPT, *BOTH).returncode == 0
    subprocess.run(two.enter(1, "mkdir", str(own / "tokenizer")), check=True)
    subprocess.run(two.enter(1, "touch", str(own / "tokenizer" / "tokenizer.json")), check=True)
    line = refused(two, own, *BOTH)
    assert re.match(rf"Error: node1 has a file of 0 bytes \(\w+\) for {own}/tokenizer/tokenizer.json, but node0", line)
    subprocess.run(two.enter(1, "rm", "-r", str(own / "tokenizer")), check=True)
    subprocess.run(two.enter(1, "sh", "-c", f"echo >> {own}/shared.safetensors"), check=True)
    line = refused(two, own, *BOTH)
    assert re.match(rf"Error: node1 has a file of \d+ bytes \(\w+\) for {own}/shared.safetensors, but node0 has", line)

    site = two.disk / "site"
    path = {"PYTHONPATH": f"{site}:{Path(__file__).parents[2]}"}
    subprocess.run(two.enter(1, "mkdir", str(site)), check=True)
    settings = "import os; os.environ['TRTLLM_PT_ISA'] = 'portable'"
    subprocess.run(two.enter(1, "sh", "-c", f'echo "{settings}" > {site}/sitecustomize.py'), check=True)
    line = refused(two, folder / "tp-2", *BOTH, environment=path)
    assert line.startswith("Error: node1 has portable for the instruction set (TRTLLM_PT_ISA), but node0 has ")
    subprocess.run(two.enter(1, "rm", str(site / "sitecustomize.py")), check=True)
    version = f"mkdir {site}/trtllm_pt && echo \"__version__ = '0.0.1'\" > {site}/trtllm_pt/__init__.py"
    subprocess.run(two.enter(1, "sh", "-c", version), check=True)
    line = refused(two, folder / "tp-2", *BOTH, environment=path)
    assert line.startswith("Error: node1 has trtllm_pt 0.0.1, but this machine has ")
    subprocess.run(two.enter(1, "sh", "-c", f"echo 'raise OSError' > {site}/trtllm_pt/__init__.py"), check=True)
    line = refused(two, folder / "tp-2", *BOTH, environment=path)
    assert line.startswith("Error: node1 cannot run a rank: OSError; install trtllm_pt there as here")
