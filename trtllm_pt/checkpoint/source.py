"""The interface of all model formats, `Source`, and our own directory format.

A source returns one track of one weight at a time, under our names and with our order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.errors import UsageError
from trtllm_pt.files.safetensors import ModelFiles
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import EMBEDDING, HEAD, TensorSpec, tensors

_LISTED = 5
_ROWS = 4096  # compared at once


class Source(Protocol):
    """A model's config and weights."""

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype of the model's weights, which `dtype="auto"` selects."""
        ...

    @property
    def tokenizer(self) -> Path | None:
        """The folder with the tokenizer's files, or None."""
        ...

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        """Return one track of a weight, [*spec.shape]. It may be a view of a mapped file.

        track: 0 for a weight that is not per track.
        """
        ...


class ModelDir:
    """A `Source` that reads our own format, MODEL_DIR: Hugging Face's layout with the names of `tensors(config)`."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Path | None = folder
        config = ModelConfig.from_file(folder / "config.json")
        self._files = ModelFiles(folder)
        self.config = untied_if_other_head(config, self._files, EMBEDDING, HEAD)
        wanted = {spec.name: spec.global_shape(self.config) for spec in tensors(self.config)}
        check_tensors(self._files, wanted, dropped=[HEAD] if self.config.tie_embeddings else [])
        self.dtype = dtype_of(self._files, EMBEDDING)

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        whole = self._files.get(spec.name)
        return (whole[track] if spec.per_track else whole).to(dtype)


def untied_if_other_head(config: ModelConfig, files: ModelFiles, embedding: str, head: str) -> ModelConfig:
    """Return the config, but untied if the files have an output head that is not the embedding.

    A fine-tune may have changed the head and copied the config. transformers uses such a head too.
    embedding, head: the names of the tensors in the files.
    """
    if not config.tie_embeddings or head not in files or embedding not in files or _are_equal(files, embedding, head):
        return config
    return config.replace(tie_embeddings=False)


def _are_equal(files: ModelFiles, *names: str) -> bool:
    """Return whether two matrices have the same values, in whichever dtypes. Only some rows are held in memory."""
    if files.shape(names[0]) != files.shape(names[1]):
        return False
    parts = zip(*(torch.split(files.get(name), _ROWS) for name in names), strict=True)
    return all(torch.equal(a.float(), b.float()) for a, b in parts)


def check_tensors(
    files: ModelFiles,
    wanted: Mapping[str, tuple[int, ...]],
    dropped: Iterable[str] = (),
    words: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raise UsageError, naming the tensors, if some are missing, unknown, or of another shape or an unsupported dtype.

    wanted: the shapes of all tensors by their names in the files. dropped: names of tensors to ignore. words: as
    `wanted`, of tensors of int32.
    """
    floats, wanted = wanted, {**wanted, **(words or {})}
    missing = [name for name in wanted if name not in files]
    if missing:
        raise UsageError(f"{files.folder} lacks the tensors {listed(missing)}")
    extra = sorted(set(files.names()) - set(wanted) - set(dropped))
    if extra:
        raise UsageError(f"{files.folder} has tensors that its config does not call for: {listed(extra)}")
    misshapen = [
        f"{name} {list(files.shape(name))}, expected {list(shape)}"
        for name, shape in wanted.items()
        if files.shape(name) != shape
    ]
    if misshapen:
        raise UsageError(f"{files.folder} has tensors of other shapes than its config: {listed(misshapen, '; ')}")
    kinds = [f"{name} {files.dtype_name(name)}" for name in floats if files.dtype(name) not in TORCH_DTYPES.values()]
    if kinds:
        raise UsageError(f"{files.folder} has tensors that are not bfloat16, float16 or float32: {listed(kinds)}")
    kinds = [f"{name} {files.dtype_name(name)}" for name in words or () if files.dtype(name) != torch.int32]
    if kinds:
        raise UsageError(f"{files.folder} has tensors that are not int32: {listed(kinds)}")


def dtype_of(files: ModelFiles, name: str) -> str:
    """Return the name of a tensor's dtype: bfloat16, float16 or float32."""
    return next(text for text, dtype in TORCH_DTYPES.items() if dtype == files.dtype(name))


def listed(names: list[str], separator: str = ", ") -> str:
    """Return the first five names joined, and the number of the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return separator.join(names[:_LISTED]) + more
