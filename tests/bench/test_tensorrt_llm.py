"""Measurements of TensorRT engines, on the stand-in for their executor that the runtime's tests hold to the real one.

It has no clock of a GPU: what is checked is that everything runs through the protocol, and what an engine that counts
no syncs gets into its columns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.backends.tensorrt_llm.executor.engine import FAILS, NOT_A_NUMBER
from tests.backends.tensorrt_llm.executor.folders import MODEL, engine_folder
from tests.backends.tensorrt_llm.executor.site import install
from trtllm_pt.bench.static_batch import Prompts
from trtllm_pt.errors import MPI_OF_TENSORRT_LLM
from trtllm_pt.job.mpirun import find_mpirun

TOKENS = 40  # drawn by the longest of these runs
# Of random tokens without those that make the stand-in fail.
SEED = str(next(n for n in range(9999) if not {FAILS, NOT_A_NUMBER} & {*Prompts(MODEL.vocab_size, n).draw(TOKENS)}))


def bench(folder: Path, *arguments: str | Path, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = [find_mpirun(MPI_OF_TENSORRT_LLM), "-n", str(ranks)] if ranks else []
    command = [*launcher, sys.executable, "-m", "trtllm_pt", "bench", *map(str, arguments), "--seed", SEED]
    env = {**os.environ, **install(folder / "site")}
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_latency(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engines", ranks=2)
    effort = ("--num_runs", "2", "--duration", "0", "--warm_up", "1", "--report_json", "r.json")
    done = bench(tmp_path, "latency", folder, "--batch_size", "2", "--input_output_len", "3,4", *effort, ranks=2)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert (row["engine"], row["world_size"], row["num_runs"]) == ("tensorrt_llm", 2, 2)
    assert row["syncs_per_token"] == 2  # of the schedule: 4 layers, D = 2
    assert row["all_reduce_share"] is None and row["hops_per_step"] is None
    assert row["all_reduce_bytes_per_token"] == 2 * MODEL.hidden_size * 2


def test_compare_gives_each_its_own_ranks(tmp_path: Path) -> None:
    engines = [f"{name}={engine_folder(tmp_path / name, ranks=2)}" for name in ("a", "b")]
    sizes = ("--input_output_len", "3,4", "--rounds", "2")
    done = bench(tmp_path, "compare", *engines, *sizes, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)["rows"]] == ["a", "b"]
