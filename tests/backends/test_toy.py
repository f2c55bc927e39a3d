"""A third backend, in a package of its own, goes through the commands as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import needs_triton
from trtllm_pt import convert

SOURCE = Path(__file__).parent / "toy" / "toy_backend.py"
ROOT = Path(__file__).parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`trtllm-pt` in an environment that has the toy's package besides what is installed here.

    Triton's Python models see the packages of their environment alone, and not PYTHONPATH.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    here = sysconfig.get_path("purelib")
    lines = (str(ROOT), f"import site; site.addsitedir({here!r})")
    (site / "here.pth").write_text("\n".join(lines) + "\n")
    shutil.copy(SOURCE, site)
    metadata = site / "toy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[trtllm_pt.backends]\ntoy = toy_backend:ToyBackend\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # mpirun's
    libraries = str(Path(sys.prefix) / "lib")  # MPI's
    environment = {**os.environ, "PATH": path, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": ""}

    def run(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        line = [str(home / "bin" / "python"), "-m", "trtllm_pt", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "checkpoint"
    convert(ROOT / "pretrained" / "stdlib-pt", path, ranks=2)
    return path


@pytest.fixture(scope="module")
def engines(command: Command, checkpoint: Path) -> Path:
    path = checkpoint.parent / "engines"
    command("build", checkpoint, "-o", path, "--engine", "toy", "--step", "3", "--max_batch_size", "4")
    return path


def test_build_and_inspect(command: Command, engines: Path) -> None:
    own = json.loads((engines / "config.json").read_text())["engine"]
    assert own == {"backend": "toy", "format": 1, "versions": {"toy": "1"}}
    found = json.loads(command("inspect", engines, "--json").stdout)
    assert (found["kind"], found["ranks"]) == ("toy", 2)
    assert "--step" in command("build", "--help").stdout


def test_run_on_two_ranks(command: Command, engines: Path) -> None:
    found = json.loads(command("run", engines, "import os", "--max-tokens", "5", "--json").stdout)
    first = found["token_ids"][0]
    assert found["token_ids"] == [first + 3 * i for i in range(5)]


def test_benchmark(command: Command, engines: Path) -> None:
    options = ["--batch_size", "2", "--input_output_len", "8,4", "--num_runs", "2", "--duration", "0"]
    found: dict[str, Any] = json.loads(command("bench", "latency", engines, *options, "--json").stdout)
    assert "toy" in json.dumps(found)


@needs_triton
def test_serve(command: Command, engines: Path) -> None:
    done = command("client", "--serve", engines, "import os", "--max-tokens", "5")
    assert "5 tokens" in done.stdout + done.stderr


def test_options_of_another_backend_are_refused(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    line = ("build", checkpoint, "-o", tmp_path / "engines", "--engine", "toy", "--gemm_plugin", "auto")
    assert "--gemm_plugin" in command(*line, status=2).stderr
    assert not (tmp_path / "engines").exists()


def test_another_format_and_another_version(command: Command, engines: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engines"
    shutil.copytree(engines, copy)
    config = json.loads((copy / "config.json").read_text())
    for change, words in ({"format": 7}, "format 7"), ({"versions": {"toy": "0"}}, "toy 0"):
        (copy / "config.json").write_text(json.dumps(config | {"engine": config["engine"] | change}))
        (line,) = command("run", copy, "import os", status=2).stderr.splitlines()
        assert words in line and "trtllm-pt build" in line


def test_an_engine_of_a_backend_that_is_not_installed(engines: Path) -> None:
    line = [sys.executable, "-m", "trtllm_pt", "inspect", str(engines)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'toy'" in done.stderr and "embedded" in done.stderr
