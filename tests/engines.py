"""Engines that many tests use. Each is built once in a test run, by the test process that asks for it first."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tests.configs import EVERYTHING, LLAMA, OTHER_SCHEDULES, PRETRAINED, TINY, TINY_TP
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.init import RandomWeights
from trtllm_pt.checkpoint.model_dir import write_model
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import TensorSpec

RANKS = (1, 2, 4, 8)
_SHORT = ("--max_num_tokens", "256", "--max_seq_len", "128")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an engine is built from: a model with weights, or a config that gets random ones."""

    model: ModelConfig | Path
    ranks: int
    dtype: str
    options: tuple[str, ...] = _SHORT
    quantize: str | None = None
    embedding: str | None = None
    kv_cache: str | None = None


RECIPES = {
    **{f"pretrained-{ranks}": Recipe(PRETRAINED, ranks, "bfloat16") for ranks in RANKS},
    **{f"pretrained-{ranks}-float32": Recipe(PRETRAINED, ranks, "float32") for ranks in RANKS},
    **{
        f"pretrained-{ranks}-{algo}": Recipe(PRETRAINED, ranks, "bfloat16", quantize=algo)
        for ranks in RANKS
        for algo in ("W8A16", "W4A16")
    },
    **{
        f"pretrained-{ranks}-quantised": Recipe(
            PRETRAINED, ranks, "bfloat16", quantize="W4A16-G64", embedding="W8A16", kv_cache="INT8"
        )
        for ranks in RANKS
    },
    **{
        f"pretrained-{ranks}-integers": Recipe(
            PRETRAINED, ranks, "float32", (*_SHORT, "--gemm", "int8"), quantize="W8A16"
        )
        for ranks in RANKS
    },
    "everything-1": Recipe(EVERYTHING, 1, "float32"),
    "everything-2": Recipe(EVERYTHING, 2, "float32"),
    "llama-1": Recipe(LLAMA, 1, "float32"),
    "llama-2": Recipe(LLAMA, 2, "float32"),
    **{f"{name}-2": Recipe(config, 2, "float32") for name, config in OTHER_SCHEDULES.items()},
    "served": Recipe(PRETRAINED, 2, "bfloat16", ("--max_batch_size", "4")),
    "tiny-pt": Recipe(TINY, 2, "float32", ("--max_batch_size", "4", "--max_num_tokens", "64")),
    "tiny-tp": Recipe(TINY_TP, 2, "float32", ("--max_batch_size", "4", "--max_num_tokens", "64")),
}


class BiasedWeights(RandomWeights):
    """Initial weights, but biases are not zero, so that a bias in the wrong place shows in the logits."""

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        return super().read(replace(spec, kind="matrix", fan_in=25) if spec.kind == "bias" else spec, track, dtype)


def built(root: Path, name: str) -> Path:
    """The folder of the engine RECIPES[name] below `root`; its checkpoint is beside it as `checkpoint-NAME`.

    Builds it where it is missing. Other processes that want an engine with the same graph wait meanwhile, because they
    would compile that graph again.
    """
    recipe = RECIPES[name]
    model = recipe.model.name if isinstance(recipe.model, Path) else name.rpartition("-")[0]
    with locked(root / f"{model}-{recipe.ranks}-{recipe.dtype}-{recipe.quantize}-{recipe.embedding}.lock"):
        if not (root / name).exists():
            _build(root, name, recipe)
    return root / name


def _build(root: Path, name: str, recipe: Recipe) -> None:
    checkpoint = root / f"checkpoint-{name}"
    if isinstance(recipe.model, Path):
        convert(
            recipe.model,
            checkpoint,
            ranks=recipe.ranks,
            dtype=recipe.dtype,
            quantize=recipe.quantize,
            embedding=recipe.embedding,
            kv_cache=recipe.kv_cache,
        )
    else:
        model = root / f"model-{name}"
        model.mkdir()
        write_model(BiasedWeights(recipe.model, 0), model, recipe.dtype, progress=False)
        convert(model, checkpoint, ranks=recipe.ranks)
    command = [sys.executable, "-m", "trtllm_pt", "build", str(checkpoint), "-o", str(root / name)]
    command += ["--engine", "embedded", *recipe.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process or thread holds the file, and hold it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
