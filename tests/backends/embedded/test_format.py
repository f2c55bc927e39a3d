"""An engine's format number changes when engines of today could not be run any more; comments make nothing stale."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.configs import SMALL
from trtllm_pt.backends.embedded import graph, network_code
from trtllm_pt.backends.embedded.backend import EmbeddedBackend
from trtllm_pt.backends.embedded.form import Storage
from trtllm_pt.backends.embedded.graph import cache_info
from trtllm_pt.backends.embedded.kernels.build import build_library
from trtllm_pt.backends.embedded.kernels.library import load
from trtllm_pt.backends.embedded.pack import SHARED_FILE, shared_names, weight_infos
from trtllm_pt.backends.embedded.step_plan import HEADER
from trtllm_pt.checkpoint.manifest import CheckpointManifest

# What an engine directory and the code that runs it must agree on, by format number. A difference means that engines on
# disk can no longer be run: raise EmbeddedBackend.format, and add a line. If they still can, as with a new optional
# argument of an op, change the last line.
INTERFACES = {1: "abd10f0c59cabe42", 2: "d6b8be3e63780094", 3: "dcc8cd841d8265d7"}


def interface() -> str:
    """The ops' schemas, the files' names, the graph's inputs and weights, and how a weight is packed."""
    schemas = sorted(str(schema) for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("trtllm_pt::"))
    manifest = CheckpointManifest(model=SMALL, ranks=2, dtype="bfloat16")
    infos = weight_infos(manifest)
    weights = {name: [str(info.dtype), list(info.shape)] for name, info in sorted(infos.items())}
    matrix = torch.arange(48 * 64, dtype=torch.float32).reshape(1, 48, 64).bfloat16()
    packed = torch.ops.trtllm_pt.pack(matrix).contiguous().view(torch.uint8).numpy().tobytes()
    shared = sorted(shared_names(SMALL, infos))
    cache = cache_info(SMALL, 2, 3, Storage(torch.bfloat16))
    parts = [schemas, weights, shared, SHARED_FILE, cache.shape, HEADER, packed.hex()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def test_the_interface_is_that_of_the_format(tmp_path: Path) -> None:
    load(build_library(tmp_path))
    assert interface() == INTERFACES[EmbeddedBackend.format]


def test_a_comment_changes_no_code() -> None:
    code = "def f(x):\n    return x + 1\n"
    same = '"""A module."""\n# why\ndef f(x):\n    """What."""\n\n    return (x + 1)  # so\n'
    other = code.replace("1", "2")
    digests = [network_code.code_of(ast.parse(text)) for text in (code, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_code_that_decides_the_graph_is_found() -> None:
    """Among it the configuration, whose methods are called while the graph is traced."""
    names = network_code.deciding_modules()
    wanted = "model.config model.layout model.schedule network.walk network.module backends.embedded.kernels.fakes"
    assert {f"trtllm_pt.{name}" for name in wanted.split()} <= set(names)
    assert not [name for name in names if name.startswith(("trtllm_pt.serving", "trtllm_pt.cli", "trtllm_pt.planner"))]


def key(**changes: object) -> str:
    given = {"config": SMALL, "ranks": 2, "storage": Storage(torch.float32), "program": "true"}
    return graph._key(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"config": SMALL.replace(norm_eps=1e-3)},
        {"ranks": 1},
        {"storage": Storage(torch.bfloat16)},
        {"storage": Storage(torch.float32, "W8A16")},
        {"storage": Storage(torch.float32, embedding_quant_algo="W8A16")},
        {"storage": Storage(torch.float32, kv_cache_quant_algo="INT8")},
        {"storage": Storage(torch.float32, "W8A16", integer_products=True)},
        {"program": "false"},
    ],
    ids=["model", "ranks", "dtype", "quantisation", "embedding", "KV cache", "integers", "compiler"],
)
def test_each_input_is_in_the_key(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "compiler_version", lambda program: f"version of {program}")
    assert key(**changes) != key()


def test_torch_flags_and_code_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key()]
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "9.9")
        keys.append(key())
    with monkeypatch.context() as patched:
        patched.setitem(graph._INDUCTOR, "cpp.simdlen", 512)
        keys.append(key())
    with monkeypatch.context() as patched:
        patched.setattr(graph, "traced_code", lambda: "another method of ModelConfig")
        keys.append(key())
    assert len(set(keys)) == 4 and key() == keys[0]


def test_code_of_a_config_method_is_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mend in ModelConfig must not return the graph that was compiled before it."""
    own = Path(network_code.__file__).parents[2] / "model" / "config.py"
    changed = tmp_path / "config.py"
    changed.write_text(own.read_text().replace("def has_rope", "def has_ropes"))
    before, path_of = network_code.traced_code.__wrapped__(), network_code._path
    monkeypatch.setattr(
        network_code, "_path", lambda name: {"trtllm_pt.model.config": changed}.get(name) or path_of(name)
    )
    assert network_code.traced_code.__wrapped__() != before
    changed.write_text("# a comment\n" + own.read_text())
    assert network_code.traced_code.__wrapped__() == before
