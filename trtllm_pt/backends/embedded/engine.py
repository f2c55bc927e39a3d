"""Build the directory of an embedded engine, and load a rank of it that runs batches.

Shapes: T tokens, B sequences, M pages of the longest sequence, R rows of logits, V vocabulary.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.backends.backend import Backend, BuildReport, check_files
from trtllm_pt.backends.embedded.constants import MAX_HEAD_SIZE, MAX_SUMMANDS, TILE
from trtllm_pt.backends.embedded.form import Storage
from trtllm_pt.backends.embedded.graph import cache_info, compiled_graph
from trtllm_pt.backends.embedded.kernels.build import LIBRARY, build_library
from trtllm_pt.backends.embedded.kernels.library import load
from trtllm_pt.backends.embedded.pack import SHARED_FILE, shared_names, storage_of, weight_infos, write_weights
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.atomic import new_folder, write_json
from trtllm_pt.files.safetensors import SafetensorsFile
from trtllm_pt.model.layout import padded_vocab_size
from trtllm_pt.model.quantization import WEIGHT_ONLY
from trtllm_pt.model.tensors import EMBEDDING, HEAD

MODEL_FILE = "model.pt2"
DTYPES = ("bfloat16", "float32")


def build(
    backend: Backend, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None
) -> BuildReport:
    """Build an engine directory from a checkpoint. `output` appears complete or not at all.

    Peak memory: twice one track of the largest matrix, and the memory of the compiler. Raises UsageError for a
    checkpoint or options that cannot be built, before anything slow begins.
    """
    began = time.monotonic()
    manifest = _checked(checkpoint)
    storage = _storage(manifest, options.extra.get("gemm"))
    engine = backend.manifest(manifest, options.resolved(manifest.model))
    with new_folder(output) as folder:
        library = build_library(folder)
        load(library)
        graph = compiled_graph(manifest.model, manifest.ranks, storage)
        shutil.copyfile(graph.path, folder / MODEL_FILE)
        write_weights(checkpoint, manifest, folder, progress)
        if (checkpoint / "tokenizer").is_dir():
            shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer")
        config = engine.to_json()
        if storage.integer_products:
            config["build_config"]["gemm"] = "int8"
        write_json(folder / "config.json", config)
    return BuildReport(
        path=output,
        ranks=manifest.ranks,
        cache="hit" if graph.cache_hit else "miss",
        seconds=time.monotonic() - began,
    )


def _checked(checkpoint: Path) -> CheckpointManifest:
    """Return the manifest of a checkpoint. Raises UsageError if it is incomplete or not supported by this backend."""
    manifest = CheckpointManifest.from_dir(checkpoint)
    if manifest.dtype not in DTYPES:
        raise UsageError(
            f"dtype ({manifest.dtype!r}) must be {' or '.join(DTYPES)} for the embedded engine; convert with --dtype"
        )
    if manifest.quant_algo not in (None, *WEIGHT_ONLY) or manifest.kv_cache_quant_algo not in (None, "INT8"):
        known = ", ".join(WEIGHT_ONLY)
        raise UsageError(
            f"quantization ({manifest.quantized}) must be none or one of {known} for the embedded engine, and its KV "
            "cache INT8; convert with one of these, or build with --engine tensorrt_llm"
        )
    _check_kernels(manifest)
    check_files(checkpoint, manifest)
    return manifest


def _storage(manifest: CheckpointManifest, gemm: str | None) -> Storage:
    """Return how the engine stores weights and multiplies. Raises UsageError for a `gemm` that it cannot have."""
    if gemm is None:
        return storage_of(manifest)
    if gemm != "int8":
        raise UsageError(f"gemm ({gemm!r}) must be 'int8', or left out")
    if manifest.quant_algo is None:
        raise UsageError("gemm ('int8') needs quantised weights; convert with --quantize W8A16 or another form")
    if manifest.model.num_experts:
        raise UsageError("gemm ('int8') is not available for models with experts")
    return replace(storage_of(manifest), integer_products=True)


def _check_kernels(manifest: CheckpointManifest) -> None:
    """Raise UsageError for sizes that the ops do not support."""
    config = manifest.model
    if config.head_size % TILE or config.head_size > MAX_HEAD_SIZE:
        raise UsageError(
            f"head_size ({config.head_size}) must be a multiple of {TILE} up to {MAX_HEAD_SIZE} for the embedded engine"
        )
    for name, value in (("tracks", config.tracks), ("ranks", manifest.ranks)):
        if value > MAX_SUMMANDS:
            raise UsageError(f"{name} ({value}) must be at most {MAX_SUMMANDS} for the embedded engine")


class EmbeddedEngine:
    """A loaded rank of an engine directory: its graph, its memory-mapped weights and its KV cache of `pages` pages.

    The caller must have checked the directory's versions (Backend.check_versions). No compiler is needed.
    Raises UsageError if the directory is incomplete.
    """

    def __init__(self, folder: Path, manifest: EngineManifest, rank: int, pages: int) -> None:
        self.folder, self.manifest, self.rank, self.pages = folder, manifest, rank, pages
        load(folder / LIBRARY)
        # torch._inductor.aoti_load_package would import the whole compiler.
        try:
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / MODEL_FILE), "model", False, 1, -1)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{folder / MODEL_FILE} does not load ({reason}): run `trtllm-pt build` again") from error
        self._files, self._weights = _map_weights(folder, manifest, rank)
        wanted = set(self._loader.get_constant_fqns())
        constants = {name: tensor for name, tensor in self._weights.items() if name in wanted}
        self._loader.load_constants(constants, False, True, True)  # user_managed: weights stay mapped, not copied
        self._head = self._weights[EMBEDDING if manifest.model.tie_embeddings else HEAD]
        storage = storage_of(manifest.checkpoint)
        form = storage.embedding_form
        self._head_form = None if form is None else form.to_list()
        self._head_first = self._weights["lm_head.first"]
        self._multiply = torch.ops.trtllm_pt.head.default  # looked up once, which saves each step some microseconds
        self.vocab_rows = padded_vocab_size(manifest.model, manifest.ranks) // manifest.ranks
        cache = cache_info(manifest.model, manifest.ranks, pages, storage)
        # The memory is not cleared, so a page that is never used takes none. The ops clear a page when they write its
        # first token.
        self._caches = [torch.empty(cache.shape, dtype=cache.dtype) for _ in range(manifest.model.num_layers)]

    def run(self, tokens: Tensor, starts: Tensor, offsets: Tensor, pages: Tensor, rows: Tensor) -> Tensor:
        """Run one forward pass and return the head's input [R, W] for some tokens.

        Inputs are int64 and contiguous: tokens [T], starts [B], offsets [B + 1], pages [B, M], rows [R]; see StepPlan.
        The caller ensures that `rows` has indices into `tokens`. Raises RunError if the ops find that other inputs
        contradict each other.
        """
        try:
            (stream,) = self._loader.boxed_run([tokens, starts, offsets, pages, rows, *self._caches])
        except RuntimeError as error:
            raise RunError(f"rank {self.rank}: {str(error).splitlines()[0]}") from error
        return stream

    def logits(self, stream: Tensor) -> Tensor:
        """Return this rank's logits, float32 [R, padded V / ranks], for rows of the head's input [R, W]."""
        logits: Tensor = self._multiply(stream, self._head, self._head_first, self.vocab_rows, self._head_form)
        return logits


def _map_weights(folder: Path, manifest: EngineManifest, rank: int) -> tuple[list[SafetensorsFile], dict[str, Tensor]]:
    """Return the mapped files and the weights as views of them.

    Raises UsageError if a shape or dtype is wrong, which the graph itself does not check.
    """
    infos = weight_infos(manifest.checkpoint)
    shared = shared_names(manifest.model, infos)
    files = {True: SafetensorsFile(folder / SHARED_FILE), False: SafetensorsFile(folder / f"rank{rank}.safetensors")}
    weights = {}
    for name, info in infos.items():
        file = files[name in shared]
        if name not in file or file.shape(name) != info.shape or file.dtype(name) != info.dtype:
            raise UsageError(
                f"{file.path} does not fit this engine: {name} is missing or has another shape; build the engine again"
            )
        weights[name] = file.get(name)
    return list(files.values()), weights
