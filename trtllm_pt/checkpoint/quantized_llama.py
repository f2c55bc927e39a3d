"""Read models of the Llama family whose matrices another library has quantised."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.checkpoint.llama import HEAD, LlamaDir
from trtllm_pt.checkpoint.packed_words import Integers, layout_of
from trtllm_pt.checkpoint.quantize import dequantize, regrouped
from trtllm_pt.checkpoint.source import check_tensors
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json
from trtllm_pt.model.quantization import GROUPS, WEIGHT_ONLY, Quantization, WeightOnly, is_quantized
from trtllm_pt.model.tensors import TensorSpec, tensors


class QuantizedLlamaDir(LlamaDir):
    """A `QuantizedSource` that reads a directory of AutoGPTQ, GPTQModel, AutoAWQ or llm-compressor.

    The integers stay as they are. Groups that are larger than the largest of this package, and zero points of whole
    outputs, become several groups with the same scale.

    Raises UsageError for a layout or sizes that are not supported, for models of which only some matrices are
    quantised, and for inputs that are not in their order in groups (`desc_act`).
    """

    def __init__(self, folder: Path) -> None:
        self._layout = layout_of(read_json(folder / "config.json")["quantization_config"])
        super().__init__(folder)
        self._kind = self._found_kind()
        name = next(name for name, kind in WEIGHT_ONLY.items() if kind == self._kind)
        self.quantization = Quantization(matrices=name)

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        if not is_quantized(spec):
            return super().read(spec, track, dtype)
        weight, scale, *zero = self.stored(spec, track)
        return dequantize(weight, scale, dtype, *zero)

    def stored(self, spec: TensorSpec, track: int) -> list[Tensor]:
        parts = [self._integers(name) for name in self._parts[spec.name]]
        codes = torch.cat([part.codes for part in parts])
        scales = torch.cat([part.scales for part in parts])
        if self._kind.group is None:
            return [codes, scales[:, 0]]
        zeros = [torch.cat([part.zeros for part in parts])] if self._kind.zeros else []
        return [codes, *(regrouped(each, codes.shape[1] // self._kind.group) for each in (scales, *zeros))]

    def _check_tensors(self) -> None:
        """Raise UsageError if the files do not have the tensors of a model all of whose matrices are quantised."""
        wanted, words, dropped = dict(self._plain_shapes()), dict[str, tuple[int, ...]](), self._dropped()
        for name, (outputs, inputs) in self._matrices().items():
            if name in self._files:
                raise UsageError(f"{name} is not quantised, and other matrices are; all of the layers' must be")
            group = self._layout.group or inputs
            if inputs % group:
                raise UsageError(f"groups of {group} inputs do not divide the {inputs} inputs of {name}")
            stem = name.removesuffix("weight")
            end, shape = self._layout.scales(outputs, inputs)
            wanted[stem + end] = shape
            words |= {stem + end: shape for end, shape in self._layout.words(outputs, inputs).items()}
            dropped += [stem + end for end in self._layout.further]
        if quantised := [name for name in self._files.names() if name.startswith(HEAD.removesuffix("weight") + "q")]:
            raise UsageError(f"{quantised[0]}: the output head is quantised, and only the layers' matrices can be")
        check_tensors(self._files, wanted, [*dropped, *self._zero_biases(set(wanted))], words)
        for name in self._matrices():
            self._check_order(name)

    def _matrices(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes [O, I] of the quantised matrices, as if they were not quantised."""
        quantised = [self._parts[spec.name] for spec in tensors(self.config) if is_quantized(spec)]
        return {name: shape for parts in quantised for name, shape in parts.items()}

    def _plain_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the tensors that are not quantised."""
        quantised = self._matrices()
        return {name: shape for name, shape in self._shapes().items() if name not in quantised}

    def _zero_biases(self, wanted: set[str]) -> list[str]:
        """Return biases of zeros, which old versions of AutoGPTQ write for models that have none."""
        stems = {name.removesuffix("weight") for name in self._matrices()}
        found = {name for name in self._files.names() if name.endswith(".bias")} - wanted
        return [name for name in found if name.removesuffix("bias") in stems and not self._files.get(name).any()]

    def _check_order(self, name: str) -> None:
        """Raise UsageError if the inputs of a group are not consecutive."""
        for end in ("g_idx", "weight_g_idx"):
            if (index := name.removesuffix("weight") + end) in self._files:
                found = self._files.get(index)
                group = self._layout.group or len(found)
                if (
                    not torch.equal(found, torch.arange(len(found), dtype=found.dtype) // group)
                    and not (found == -1).all()
                ):
                    raise UsageError(
                        f"{index}: the groups' inputs are not consecutive (desc_act); quantise with desc_act false, or "
                        "with static groups"
                    )

    def _found_kind(self) -> WeightOnly:
        """Return the quantisation, which has zero points if any matrix has one that is not 0."""
        stems = [name.removesuffix("weight") for name in self._matrices()]
        zeros = any(bool(self._layout.zeros(partial(self._end, stem)).any()) for stem in stems)
        if self._layout.group is None and not zeros:
            return WeightOnly(self._layout.bits)
        sizes = {self._layout.group or inputs for _, inputs in self._matrices().values()}
        fitting = [group for group in GROUPS if all(size % group == 0 for size in sizes)]
        if not fitting:
            raise UsageError(f"groups of {min(sizes)} inputs must be a multiple of {' or '.join(map(str, GROUPS))}")
        return WeightOnly(self._layout.bits, fitting[0], zeros)

    def _integers(self, name: str) -> Integers:
        """Return a matrix by the name that it would have without quantisation."""
        return self._layout.integers(partial(self._end, name.removesuffix("weight")))

    def _end(self, stem: str, end: str) -> Tensor:
        return self._files.get(stem + end)
