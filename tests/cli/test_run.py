"""`build`, `inspect` and `run` on a random model of two ranks, as users call them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done, run_in
from tests.cli.test_doctor import other_mpirun
from trtllm_pt.errors import UsageError
from trtllm_pt.runtime.llm import LLM, SamplingParams

RESULT_KEYS = {"text", "token_ids", "ttft_s", "tokens_per_s", "sync_points_seen", "finish_reason"}
WRONG_PROMPTS = {
    "1 2 512": r"token_ids\[2\] \(512\) must be a token id between 0 and 511",
    "-1": r"token_ids\[0\] \(-1\) must be a token id between 0 and 511",
    " ".join(["1"] * 64): r"the prompt has 64 tokens and must be shorter than max_seq_len \(64\)",
    "def main": r"this engine has no tokenizer.*'def main'",
    "": r"the prompt is empty",
}
MPIRUN = Path(sys.prefix) / "bin" / "mpirun"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `checkpoint`, and `engines` of 64 positions without a tokenizer: prompts are token ids."""
    folder = tmp_path_factory.mktemp("run")
    build = "build checkpoint -o engines --engine embedded --max-seq-len 64"
    for line in ("init pt-tiny -o checkpoint --ranks 2", build):
        done = run_in(folder, *line.split())
        assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"engines: embedded engine, compiled graph: cache (hit|miss), .*\n", done.stderr)
    return folder


def under(launcher: Path, folder: Path, *arguments: str, ranks: int = 2) -> Done:
    command = [str(launcher), "-n", str(ranks), sys.executable, "-m", "trtllm_pt", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_inspect(folder: Path) -> None:
    found = json.loads(run_in(folder, "inspect", "engines", "--json").stdout)
    assert (found["ranks"], found["tracks"], found["layers"], found["block_depth"]) == (2, 8, 4, 4)
    assert (found["sync_points"], found["tensor_parallel_sync_points"]) == (1, 8)
    assert sum(c["kind"] == "all_reduce" for c in found["collectives"]) == 1
    page = run_in(folder, "inspect", "checkpoint").stdout
    assert "1 per forward, 8 under tensor parallelism, 8 times fewer" in page
    assert "(attention ffn) x4 [stream mean]" in page
    assert "layer 3 ffn" in page


def test_run(folder: Path) -> None:
    """A prompt as an argument, on standard input, as JSON, among several, on mpirun's ranks: the same tokens."""
    done = run_in(folder, "run", "engines", "1 2 3", "--max-tokens", "4")
    assert re.fullmatch(r"1 2 3( \d+){4}\n", done.stdout), done
    closing = (
        r"4 tokens \(length\) · TTFT .* · [\d.]+ tokens/s · syncs per forward: 1, against 8 for tensor parallelism"
    )
    assert re.fullmatch(closing + "\n", done.stderr)
    assert run_in(folder, "run", "engines", "--max-tokens", "4", stdin="1 2 3\n").stdout == done.stdout
    assert under(MPIRUN, folder, "run", "engines", "1 2 3", "--max-tokens", "4").stdout == done.stdout

    only_the_likeliest = run_in(
        folder, "run", "engines", "1 2 3", "--max-tokens", "4", "--temperature", "5", "--min-p", "1"
    )
    assert only_the_likeliest.stdout == done.stdout

    one = json.loads(run_in(folder, "run", "engines", "1 2 3", "--json", "--max-tokens", "4").stdout)
    assert set(one) == RESULT_KEYS
    assert (one["text"], one["sync_points_seen"], one["finish_reason"]) == ("", 1, "length")
    assert one["token_ids"] == [int(word) for word in done.stdout.split()[3:]]
    several = json.loads(run_in(folder, "run", "engines", "1 2 3", "4", "--json", "--max-tokens", "4").stdout)
    assert [result["token_ids"] for result in several] == [one["token_ids"], several[1]["token_ids"]]


def test_prompts_that_an_engine_cannot_take(folder: Path) -> None:
    """One engine for all: starting it takes longer than the refusals."""
    with LLM(folder / "engines") as llm:
        for prompt, message in WRONG_PROMPTS.items():
            with pytest.raises(UsageError, match=message):
                llm.generate([prompt])
        assert len(llm.generate(["1 2 3"], SamplingParams(max_tokens=4))[0].token_ids) == 4  # none the worse for it
    done = run_in(folder, "run", "engines", "1 2 512")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"Error: {WRONG_PROMPTS['1 2 512']}\n", done.stderr)


@pytest.mark.parametrize(
    ("change", "named"), [({"versions": {"torch": "0.1"}}, "torch 0.1"), ({"format": 0}, "format 0")]
)
def test_an_engine_of_another_version(folder: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    shutil.copytree(folder / "engines", tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    config["engine"] |= change
    path.write_text(json.dumps(config))
    done = run_in(tmp_path, "run", "other", "1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert named in line and "run `trtllm-pt build` again" in line


def test_an_engine_with_truncated_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "engines", tmp_path / "engines")
    os.truncate(tmp_path / "engines" / "rank1.safetensors", 1000)
    done = run_in(tmp_path, "run", "engines", "1")
    assert done.returncode == 2
    assert re.fullmatch(r"Error: .*rank1\.safetensors.*\n", done.stderr)


def test_a_checkpoint_is_no_engine(folder: Path) -> None:
    done = run_in(folder, "run", "checkpoint", "1")
    assert done.returncode == 2
    assert (
        done.stderr == "Error: checkpoint is not an engine directory: it is a checkpoint; run `trtllm-pt build` on it\n"
    )


def test_build_without_a_compiler(folder: Path, tmp_path: Path) -> None:
    """Nothing in the cache, nothing to compile with; what is built runs all the same."""
    env = {"CXX": "no-such-compiler", "TRTLLM_PT_CACHE": str(tmp_path)}
    done = run_in(folder, "build", "checkpoint", "-o", "out", "--engine", "embedded", env=env)
    assert done.returncode == 2
    assert re.fullmatch(r"Error: CXX=no-such-compiler is not a program; .*CXX.*\n", done.stderr)
    assert not (folder / "out").exists()
    assert run_in(folder, "run", "engines", "1", "--max-tokens", "1", env=env).returncode == 0


@pytest.mark.parametrize("launched", ["2", None], ids=["joined", "started"])
def test_a_rank_without_mpi(folder: Path, tmp_path: Path, launched: str | None) -> None:
    broken = tmp_path / "mpi4py" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('no libmpi')")
    done = run_in(folder, "run", "engines", "1", env={"PYTHONPATH": str(tmp_path), "PMI_SIZE": launched})
    assert done.returncode == 2
    assert re.fullmatch(r"Error: no MPI: .*pip install 'trtllm_pt\[embedded\]'.*\n", done.stderr)


def test_run_under_another_mpirun(folder: Path, tmp_path: Path) -> None:
    done = under(other_mpirun(tmp_path), folder, "run", "engines", "1")
    assert done.returncode == 2
    assert re.fullmatch(r"Error: Open MPI's mpirun started 2 ranks, but mpi4py here uses MPICH .*\n", done.stderr)


def test_run_with_too_many_ranks(folder: Path) -> None:
    done = under(MPIRUN, folder, "run", "engines", "1", ranks=3)
    assert done.returncode == 2
    assert re.search(r"2 ranks .* 3 were started: use `mpirun -n 2`", done.stderr)
