"""Measure the start of an engine: the seconds to load it, and the memory of each rank beside the weights.

    python benchmarks/start.py ENGINES [--tokens 128] [--json]         one rank
    mpirun -n 2 python benchmarks/start.py ENGINES …

The seconds are those of the slowest rank, from the end of the imports (torch, MPI) until the engine accepts requests.
Own memory is what the kernel calls anonymous, which no other process shares: the growth from before the engine is
loaded until after a prompt, including the KV cache for that prompt. Mapped memory is what a rank reads of the engine's
files, which all ranks share with each other and with the page cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from trtllm_pt.backends.embedded.runtime import EmbeddedRuntime
from trtllm_pt.backends.embedded.session import Session, open_session
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import MPI_OF_EMBEDDED
from trtllm_pt.job.launchers import launched_ranks
from trtllm_pt.job.world import import_mpi
from trtllm_pt.requests.messages import Request, SamplingParams

COLUMNS = ("rank", "load (s)", "own memory (MB)", "mapped (MB)", "weights (MB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if launched_ranks():
        import_mpi(MPI_OF_EMBEDDED)
    own = memory("Anonymous")
    began = time.perf_counter()
    session = open_session(args.engines)
    loaded = time.perf_counter() - began
    prompt(session, args.tokens)
    row = (session.world.rank, loaded, memory("Anonymous") - own, mapped(args.engines), weights(session, args.engines))
    rows = session.world.gather_all(row)
    if session.world.rank == 0:
        if args.json:
            print(
                json.dumps({"engine": str(args.engines), "ranks": [dict(zip(COLUMNS, r, strict=True)) for r in rows]})
            )
        else:
            print(table([[r[0], f"{r[1]:.2f}", *(f"{mb:.0f}" for mb in r[2:])] for r in rows], list(COLUMNS)))


def prompt(session: Session, tokens: int) -> None:
    """Run one forward, so that every weight has been read."""
    if session.world.rank:
        session.follow()
        return
    runtime = EmbeddedRuntime(session)
    runtime.submit(Request(id=0, token_ids=tuple(range(tokens)), sampling=SamplingParams(max_tokens=1, end_id=-1)))
    while runtime.busy:
        runtime.poll(1.0)
    session.close()


def memory(kind: str) -> float:
    """Return the memory of this process in MB, of a kind that /proc/self/smaps_rollup names."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1e3


def mapped(engines: Path) -> float:
    """Return how much of the engine's files this process has in memory, in MB."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = str(engines.resolve()) in line and ".safetensors" in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total / 1e3


def weights(session: Session, engines: Path) -> float:
    """Return the size of this rank's weight files in MB."""
    files = (engines / f"rank{session.world.rank}.safetensors", engines / "shared.safetensors")
    return sum(file.stat().st_size for file in files if file.exists()) / 1e6


if __name__ == "__main__":
    run_script(main)
