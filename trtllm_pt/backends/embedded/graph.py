"""Compile the graph of the embedded engine with torch.export and AOTInductor, once for each distinct graph.

One package serves all batch shapes and all ranks: it contains no weights, and reads rank and communicator at run time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.form import Storage
from trtllm_pt.backends.embedded.network import EmbeddedModel
from trtllm_pt.backends.embedded.network_code import traced_code
from trtllm_pt.errors import RunError
from trtllm_pt.files.atomic import new_file
from trtllm_pt.files.cache import cache_dir
from trtllm_pt.files.compiler import compiler, compiler_version
from trtllm_pt.files.safetensors import TensorInfo
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.requests.limits import MAX_BATCH, MAX_TOKENS

_MAX_PAGES = 1 << 24
# The graph is compiled for AVX2 so that a package runs on every x86-64 server. The ops choose their instruction set at
# run time. Ops stay in the order of the schedule: the compiler's reorderings would wait for an all-reduce as soon as it
# has started, and an addition that is fused with a later one would wait for what that one needs.
_INDUCTOR = {
    "aot_inductor.package_constants_in_so": False,
    "cpp.simdlen": 256,
    "cpp.march": "x86-64-v3",
    "max_fusion_size": 1,
    "reorder_for_locality": False,
    "reorder_for_peak_memory": False,
}


@dataclass(frozen=True, slots=True)
class Graph:
    """A compiled graph in the cache."""

    path: Path
    cache_hit: bool


def compiled_graph(config: ModelConfig, ranks: int, storage: Storage) -> Graph:
    """Return the compiled graph of a model on `ranks` ranks, and compile it if the cache does not have it.

    The op library must be loaded. Raises UsageError without a C++ compiler, and RunError if compiling fails.
    """
    program = compiler()
    path = cache_dir() / "graphs" / f"{_key(config, ranks, storage, program)}.pt2"
    if path.exists():
        return Graph(path, cache_hit=True)
    os.environ["CXX"] = program  # makes Inductor use the same compiler
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as scratch, new_file(path) as partial:
        shutil.copyfile(_compile(config, ranks, storage, Path(scratch) / "model.pt2"), partial)
    return Graph(path, cache_hit=False)


def cache_info(config: ModelConfig, ranks: int, pages: int, storage: Storage) -> TensorInfo:
    """Return the dtype and shape of one layer's KV cache on one rank: [2, P, K * G, PAGE * D], or in int8, as bytes,
    [2, P, K * G, PAGE * (D + 4)], because a token has a float32 scale.

    P pages, K tracks on the rank, G KV heads per track, D head_size; the first axis is keys and values.
    """
    layout, int8 = rank_layout(config, ranks), storage.kv_cache_quant_algo == "INT8"
    token = config.head_size + (torch.float32.itemsize if int8 else 0)
    shape = (2, pages, len(layout.tracks) * len(layout.kv_heads), PAGE * token)
    return TensorInfo(torch.uint8 if int8 else storage.dtype, shape)


def _key(config: ModelConfig, ranks: int, storage: Storage, program: str) -> str:
    """Return a digest of everything that determines the compiled graph: the model, torch, the compiler and its flags,
    and the traced code without its comments."""
    built_by = torch.__version__, compiler_version(program), sorted(_INDUCTOR.items())
    parts = [json.dumps(config.to_json()), ranks, storage, *built_by, traced_code()]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _compile(config: ModelConfig, ranks: int, storage: Storage, package: Path) -> Path:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError, InductorError

    from trtllm_pt.backends.embedded.kernels import fakes

    fakes.register()  # tracing needs the shapes of the ops' results

    dim = torch.export.Dim
    tokens, batch = dim("tokens", min=1, max=MAX_TOKENS), dim("batch", min=1, max=MAX_BATCH)
    rows, width = dim("rows", min=1, max=MAX_TOKENS), dim("pages_per_sequence", min=1, max=_MAX_PAGES)
    pages = dim("pages", min=1, max=_MAX_PAGES)
    shapes = (
        {0: tokens},
        {0: batch},
        {0: batch + 1},
        {0: batch, 1: width},
        {0: rows},
        [{1: pages}] * config.num_layers,
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch uses deprecated parts of itself
        model = EmbeddedModel(config, ranks, storage).eval()
        example = _example(config, ranks, storage)
        exported = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
        try:
            aoti_compile_and_package(exported, package_path=str(package), inductor_configs=_INDUCTOR)
        except (CppCompileError, InductorError) as error:
            raise RunError(f"compiling the graph failed: {str(error).splitlines()[0]}; nothing was kept") from error
    return package


def _example(config: ModelConfig, ranks: int, storage: Storage) -> tuple[Tensor | list[Tensor], ...]:
    """Return an example batch. No axis has size 0 or 1, because tracing treats these sizes as constants."""
    int64, cache = torch.int64, cache_info(config, ranks, 6, storage)
    return (
        torch.zeros(8, dtype=int64),
        torch.zeros(2, dtype=int64),
        torch.tensor([0, 3, 8]),
        torch.zeros(2, 4, dtype=int64),
        torch.tensor([2, 5, 7]),
        [torch.zeros(cache.shape, dtype=cache.dtype) for _ in range(config.num_layers)],
    )


def ops_in_order(package: Path) -> list[str]:
    """Return the names of our ops that a compiled package calls, in order."""
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if name.endswith(".wrapper.json")]
        nodes = json.loads(archive.read(names[0]))["nodes"]
    targets = [node["node"]["target"] for node in nodes]
    return [target.removeprefix("trtllm_pt::") for target in targets if target.startswith("trtllm_pt::")]
