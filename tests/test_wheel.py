"""The wheel that `make wheel` makes: installed where there is no compiler and no MPI header, it answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMPT = ["def binary_search(", "--max-tokens", "16", "--temperature", "0"]
LIBRARY_WITHOUT_COMPILER = """
from pathlib import Path
from trtllm_pt.backends.embedded.kernels import build, library
library.load(build.build_library(Path("ops")))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def output(*command: object, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build", reason="pip install -e '.[release]'")
    pytest.importorskip("setuptools_scm", reason="pip install -e '.[release]'")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out]
    output(*command, cwd=ROOT, env={**os.environ, "TRTLLM_PT_BUILD_OPS": "1"})  # the wheel from the sdist
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that holds the wheel, and MPI without its header."""
    home = tmp_path_factory.mktemp("environment")
    output(sys.executable, "-m", "venv", home)
    # Without PYTHONPATH, through which pip would find a source tree of this version, and install nothing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output(home / "bin" / "pip", "install", f"{wheel}[embedded]", env=environment)
    for header in (home / "include").rglob("mpi*.h"):
        header.unlink()
    return home / "bin"


@pytest.fixture
def bare(installed: Path, tmp_path: Path) -> dict[str, str]:
    """Environment variables of a machine that has nothing but the wheel, and nothing in its cache."""
    assert not [name for name in ("g++", "gcc", "clang++", "c++", "cc") if shutil.which(name, path=str(installed))]
    return {"PATH": str(installed), "HOME": str(tmp_path)}


def test_the_wheel_is_for_this_platform_and_any_python(wheel: Path) -> None:
    assert wheel.stem.endswith("-py3-none-linux_x86_64")


def test_the_library_needs_no_compiler(installed: Path, bare: dict[str, str], tmp_path: Path) -> None:
    output(installed / "python", "-c", LIBRARY_WITHOUT_COMPILER, cwd=tmp_path, env=bare)
    assert (tmp_path / "ops" / "libtrtllm_pt_ops.so").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_engine_from_elsewhere_answers(installed: Path, bare: dict[str, str], tmp_path: Path, ranks: int) -> None:
    here = [sys.executable, "-m", "trtllm_pt"]
    output(*here, "convert", "pretrained/stdlib-pt", "-o", tmp_path / "checkpoint", "--ranks", ranks, cwd=ROOT)
    output(*here, "build", tmp_path / "checkpoint", "-o", tmp_path / "engine", "--engine", "embedded", cwd=ROOT)
    wanted = output(*here, "run", tmp_path / "engine", *PROMPT, cwd=ROOT)
    assert output(installed / "trtllm-pt", "run", tmp_path / "engine", *PROMPT, cwd=tmp_path, env=bare) == wanted
    assert wanted.startswith(PROMPT[0]) and len(wanted) > len(PROMPT[0]) + 8
