"""The recording stand-in for `tensorrt` against NVIDIA's own bindings, which import without a GPU.

Needs TENSORRT_BINDINGS, a directory made by `pip install --no-deps --target DIRECTORY
tensorrt-cu13-bindings==10.14.1.48.post1`, and a C compiler; skipped without.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.backends.tensorrt_llm.checkout.tensorrt.enums import NAMES
from tests.backends.tensorrt_llm.checkout.tensorrt.network import INetworkDefinition

BINDINGS = Path(__file__).parent / "bindings"
METHODS = {name: method for name, method in vars(INetworkDefinition).items() if name.startswith("add_")}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not os.environ.get("TENSORRT_BINDINGS"):
        pytest.skip("TENSORRT_BINDINGS is not set (see the head of this file)")
    package = Path(os.environ["TENSORRT_BINDINGS"]).resolve() / "tensorrt_bindings"
    folder = tmp_path_factory.mktemp("bindings")
    (folder / "tensorrt").symlink_to(package)
    (module,) = package.glob("tensorrt*.so")
    major = re.search(rb"libnvinfer\.so\.(\d+)", module.read_bytes())
    assert major is not None
    for library in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        output = folder / f"{library}.so.{major[1].decode()}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", output, BINDINGS / "libnvinfer.c"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, BINDINGS / "read.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_enums(real: dict[str, Any]) -> None:
    assert real["version"] == NAMES["version"]
    assert real["enums"] == NAMES["enums"]


def test_classes(real: dict[str, Any]) -> None:
    assert set(NAMES["classes"]) <= set(real["classes"])


@pytest.mark.parametrize("name", METHODS)
def test_layers_take_the_same_arguments(name: str, real: dict[str, Any]) -> None:
    assert list(inspect.signature(METHODS[name]).parameters)[1:] in real["methods"][name]
