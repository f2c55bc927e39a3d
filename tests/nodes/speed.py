"""`make nodes-speed`: what adding on each machine first saves, and PT against TP between two sites.

The nodes are those of `make nodes-test`. The figures are worth something on a quiet machine only: four ranks and the
program that delays packets share its cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.nodes.cluster import Cluster, lacking
from trtllm_pt.bench.netlab.links import DEVICE, Link
from trtllm_pt.cli.text import memory, table
from trtllm_pt.model.presets import preset

NODES, EACH = 2, 2
BETWEEN_MACHINES, BETWEEN_SITES = 200, 10_000  # microseconds one way
SIZES = "4096,65536,2"
DEEP = 48  # layers, as in the presets of 30 billion parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"what to measure, of {', '.join(PARTS)}; both if none"
    )
    parser.add_argument("--rounds", type=int, default=9, help="samples of each all-reduce and of each engine")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"PART ({', '.join(sorted(unknown))}) must be one of {', '.join(PARTS)}")
    if (why := lacking()) is not None:
        sys.exit(f"make nodes-speed {why}")
    with tempfile.TemporaryDirectory() as scratch:
        for part in given.parts or PARTS:
            PARTS[part](Path(scratch), given.rounds)


def print_all_reduces(scratch: Path, rounds: int) -> None:
    print(f"All-reduces of {NODES} nodes with {EACH} ranks each, {BETWEEN_MACHINES} us between nodes, medians in us")
    header = ["message", "two levels", "all-gather", "MPI_Allreduce", "two levels / all-gather", "/ MPI_Allreduce"]
    print(table(all_reduces(scratch, rounds), header, left=0), flush=True)


def print_schedules(scratch: Path, rounds: int) -> None:
    print(f"Time per token of {DEEP} layers, {NODES} nodes with {EACH} ranks each, {BETWEEN_SITES} us between nodes")
    print(table(schedules(scratch, rounds), ["schedule", "ms", "divided by that of tp"]), flush=True)


PARTS = {"all-reduce": print_all_reduces, "schedules": print_schedules}


def all_reduces(scratch: Path, rounds: int) -> list[list[str]]:
    """Return a row for each message size, with the engine's method and two flat ones, between all ranks.

    Raises RuntimeError if the measurement fails.
    """
    report = scratch / "all-reduce.json"
    options = ["--ranks", str(NODES * EACH), "--range", SIZES, "--collectives", "mpi;gathered;mpi4py"]
    options += ["--rounds", str(rounds), "--threads", "1"]
    on_nodes(BETWEEN_MACHINES, "all-reduce", *options, "--report_json", str(report))
    found: dict[int, dict[str, float]] = {}
    for row in json.loads(report.read_text())["rows"]:
        found.setdefault(row["message size"], {})[row["strategy"]] = 1e3 * row["duration (ms)"]
    return [
        [
            memory(size),
            *(f"{times[name]:.0f}" for name in ("mpi", "gathered", "mpi4py")),
            *(f"{times['mpi'] / times[flat]:.2f}" for flat in ("gathered", "mpi4py")),
        ]
        for size, times in sorted(found.items())
    ]


def schedules(scratch: Path, rounds: int) -> list[list[str]]:
    """Return a row for TP and for PT with D = 8. Raises RuntimeError if the measurement fails."""
    config = preset("pt-tiny").replace(num_layers=DEEP, block_depth=8)
    (scratch / "deep.json").write_text(json.dumps(config.to_json()))
    report = scratch / "compare.json"
    options = ["--model", str(scratch / "deep.json"), "--schedules", "pt-d8", "--ranks", str(NODES * EACH)]
    options += ["--input_output_len", "16,8", "--batch_size", "1", "--rounds", str(rounds), "--threads", "1"]
    on_nodes(BETWEEN_SITES, "compare", *options, "--report_json", str(report))
    rows = json.loads(report.read_text())["rows"]
    return [[row["name"], f"{row['tpot(ms)']:.1f}", f"{row['tpot_ratio'] or 1:.3f}"] for row in rows]


def on_nodes(delay_us: int, *measurement: str) -> None:
    """Run `trtllm-pt bench` over all nodes. Raises RuntimeError if it fails."""
    with Cluster(NODES, Link(delay_us)) as cluster:
        hosts = ",".join(f"{name}:{EACH}" for name in cluster.names)
        command = [sys.executable, "-m", "trtllm_pt", "bench", *measurement, "--hosts", hosts, "--interface", DEVICE]
        done = cluster.run(*command, environment={"OMP_WAIT_POLICY": "passive"}, seconds=1800)
    if done.returncode:
        raise RuntimeError(f"bench {measurement[0]}: {done.stderr}")


if __name__ == "__main__":
    main()
