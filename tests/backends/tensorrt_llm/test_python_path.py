"""The folder for PYTHONPATH: NVIDIA's tools know our class in their own process and in those that they start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.tensorrt_llm.executor.folders import engine_folder
from trtllm_pt.backends import tensorrt_llm as backend

ROOT = Path(__file__).parents[3]
FOLDER = Path(backend.__path__[0]) / "python_path"
CHECKOUT = os.environ.get("TRTLLM_CHECKOUT")
# TensorRT-LLM as an installed package: the stand-in's modules, of which one is imported from a file.
INSTALLED = {
    "tensorrt_llm/__init__.py": """
import sys
from tests.backends.tensorrt_llm.standin.install import generated
modules = {name: module for name, module in generated().items() if name not in ("tensorrt_llm", "tensorrt_llm.models")}
sys.modules.update(modules)
import tensorrt_llm.models
""",
    "tensorrt_llm/models/__init__.py": """
from tests.backends.tensorrt_llm.standin.install import generated
of_the_stand_in = vars(generated()["tensorrt_llm.models"])
globals().update({name: value for name, value in of_the_stand_in.items() if not name.startswith("__")})
""",
    "sitecustomize.py": "import os\nos.environ['HIDDEN'] = 'was imported'",
}
# As the tools do: the engine's config is read here, and in a process for a rank.
TOOL = """
import os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def read(folder):
    from tensorrt_llm.models.modeling_utils import PretrainedConfig
    return type(PretrainedConfig.from_checkpoint(folder)).__name__

def told(folder):
    try:
        return read(folder)
    except KeyError as error:
        return f"unknown {error}"

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        print(told(sys.argv[1]), pool.submit(told, sys.argv[1]).result(), os.environ.get("HIDDEN"))
"""
WITH_SOURCES = """
import sys
from tensorrt_llm.builder import EngineConfig
print(type(EngineConfig.from_json_file(sys.argv[1] + "/config.json").pretrained_config).__name__)
"""
STUBS = """
import os
from pathlib import Path
from tests.backends.tensorrt_llm.checkout.stubs import install
install(Path(os.environ["TRTLLM_CHECKOUT"]))
"""


def run(folder: Path, program: str, argument: Path, *first: Path) -> str:
    path = os.pathsep.join(map(str, (*first, folder, ROOT)))
    (folder / "tool.py").write_text(program)
    command = [sys.executable, folder / "tool.py", argument]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    for name, text in INSTALLED.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "site"


def checkpoint(folder: Path) -> Path:
    """A folder with a config.json of ours."""
    config = json.loads((engine_folder(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["pretrained_config"]))
    return folder


def test_every_process_knows_the_class(installed: Path, tmp_path: Path) -> None:
    ours = checkpoint(tmp_path / "ours")
    unknown = "unknown 'ParallelTrackForCausalLM'"
    assert run(installed, TOOL, ours) == f"{unknown} {unknown} was imported"
    assert run(installed, TOOL, ours, FOLDER) == "ParallelTrackConfig ParallelTrackConfig was imported"


def test_a_process_without_tensorrt_llm_imports_nothing(tmp_path: Path) -> None:
    program = "import sys; print('trtllm_pt' in sys.modules, 'torch' in sys.modules, 'sitecustomize' in sys.modules)"
    assert run(tmp_path, program, tmp_path, FOLDER) == "False False True"


@pytest.mark.skipif(not CHECKOUT, reason="TRTLLM_CHECKOUT does not name TensorRT-LLM's sources")
def test_tensorrt_llms_sources_read_our_engines(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STUBS)
    assert run(tmp_path, WITH_SOURCES, engine_folder(tmp_path / "engines"), FOLDER) == "ParallelTrackConfig"
