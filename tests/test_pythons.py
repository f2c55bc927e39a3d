"""The facts of a model need nothing but Python: they import under every version we name, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FACTS = ("config", "presets", "schedule", "layout", "tensors", "quantization", "cost")
ROOT = Path(__file__).parents[1]
MODULES = ("errors", *(f"model.{name}" for name in FACTS))


def interpreter(version: str) -> str | None:
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        return None  # not there, or a shim without a Python behind it
    return found


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_imports(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    lines = [f"import trtllm_pt.{module}" for module in MODULES]
    lines += ["import sys", "assert not {'torch', 'numpy'} & set(sys.modules)"]
    # Every file must at least be Python of that version.
    lines += ["import pathlib", "[compile(p.read_text(), p, 'exec') for p in pathlib.Path('trtllm_pt').rglob('*.py')]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-S", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
