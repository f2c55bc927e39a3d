"""Quantised matrices in the layouts of AutoGPTQ and GPTQModel, of AutoAWQ, and of compressed-tensors.

All three pack integers of 4 or 8 bits into words of 32, and store several tensors for a matrix X. Shapes: O outputs,
I inputs, G groups of inputs, p integers per word.

gptq           X.qweight [I / p, O], X.qzeros [G, O / p], X.scales [G, O]: the first of p integers has the lowest bits.
               A number is scale * (integer - zero point), with integers from 0. The format `gptq` stores zero points
               less 1, and `gptq_v2` as they are. X.g_idx [I] has the group of each input.
awq            X.qweight [I, O / 8], X.qzeros [G, O / 8], X.scales [G, O]: from the lowest bits, a word has the outputs
               0, 2, 4, 6, 1, 3, 5, 7 of eight. Numbers are those of gptq.
compressed-    X.weight_packed [O, I / p], X.weight_scale [O, G], X.weight_zero_point [O / p, G], X.weight_shape [2]:
tensors        the first of p integers has the lowest bits. Integers and zero points are signed, and stored plus
               2^(bits - 1).

tests/checkpoint/packed/make.py packs matrices by these libraries' own functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trtllm_pt.errors import UsageError

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_GPTQ_FORMATS = ("gptq", "gptq_v2")
_BITS = (4, 8)
_CONFIG = "quantization_config"

Get = Callable[[str], Tensor]  # the end of a tensor's name, such as `qweight` -> the tensor of one matrix


@dataclass(frozen=True, slots=True)
class Integers:
    """A matrix of which a number is scale * (code - zero)."""

    codes: Tensor  # int8 [O, I], of as many bits as the layout has
    scales: Tensor  # [O, G]
    zeros: Tensor  # int8 [O, G]


@dataclass(frozen=True, slots=True)
class Layout(ABC):
    """How a library stores matrices."""

    bits: int
    group: int | None  # inputs that share a scale; None: all

    @abstractmethod
    def words(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        """Return the ends of the names and the shapes of a matrix's tensors of int32."""

    @abstractmethod
    def scales(self, outputs: int, inputs: int) -> tuple[str, tuple[int, ...]]:
        """Return the end of the name and the shape of a matrix's scales."""

    @abstractmethod
    def zeros(self, get: Get) -> Tensor:
        """Return a matrix's zero points, int8 [O, G]."""

    @abstractmethod
    def integers(self, get: Get) -> Integers:
        """Return a matrix."""

    @property
    def further(self) -> tuple[str, ...]:
        """The ends of the names of tensors that files may have and that say nothing new."""
        return ()

    def groups(self, inputs: int) -> int:
        """Return the number of groups of an output."""
        return inputs // (self.group or inputs)

    def words_of(self, count: int) -> int:
        """Return the number of words that so many integers take."""
        return count * self.bits // 32


@dataclass(frozen=True, slots=True)
class Gptq(Layout):
    """The layout of AutoGPTQ and GPTQModel."""

    zeros_are_less_one: bool

    @property
    def further(self) -> tuple[str, ...]:
        return ("g_idx",)

    def words(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        zeros = (self.groups(inputs), self.words_of(outputs))
        return {"qweight": (self.words_of(inputs), outputs), "qzeros": zeros}

    def scales(self, outputs: int, inputs: int) -> tuple[str, tuple[int, ...]]:
        return "scales", (self.groups(inputs), outputs)

    def zeros(self, get: Get) -> Tensor:
        words = get("qzeros")
        if self.zeros_are_less_one:  # GPTQModel subtracts 1 from all fields of a word at once, so it may borrow
            words = words + sum(1 << shift for shift in range(0, 32, self.bits))
        return unpacked(words, self.bits).mT.contiguous()

    def integers(self, get: Get) -> Integers:
        codes = unpacked(get("qweight").mT, self.bits)
        return Integers(codes, get("scales").mT.contiguous(), self.zeros(get))


@dataclass(frozen=True, slots=True)
class Awq(Layout):
    """The layout of AutoAWQ's version `gemm`."""

    def words(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        words = self.words_of(outputs)
        return {"qweight": (inputs, words), "qzeros": (self.groups(inputs), words)}

    def scales(self, outputs: int, inputs: int) -> tuple[str, tuple[int, ...]]:
        return "scales", (self.groups(inputs), outputs)

    def zeros(self, get: Get) -> Tensor:
        return self._outputs_in_order(get("qzeros"))

    def integers(self, get: Get) -> Integers:
        return Integers(self._outputs_in_order(get("qweight")), get("scales").mT.contiguous(), self.zeros(get))

    def _outputs_in_order(self, words: Tensor) -> Tensor:
        places = [_AWQ_ORDER.index(output) for output in range(len(_AWQ_ORDER))]
        values = unpacked(words, self.bits).view(len(words), -1, len(_AWQ_ORDER))
        return values[..., places].flatten(-2).mT.contiguous()


@dataclass(frozen=True, slots=True)
class CompressedTensors(Layout):
    """The format `pack-quantized` of compressed-tensors, which llm-compressor writes."""

    symmetric: bool

    @property
    def further(self) -> tuple[str, ...]:
        return ("weight_shape", "weight_g_idx")

    def words(self, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        zeros = {} if self.symmetric else {"weight_zero_point": (self.words_of(outputs), self.groups(inputs))}
        return {"weight_packed": (outputs, self.words_of(inputs)), **zeros}

    def scales(self, outputs: int, inputs: int) -> tuple[str, tuple[int, ...]]:
        return "weight_scale", (outputs, self.groups(inputs))

    def zeros(self, get: Get) -> Tensor:
        if self.symmetric:
            return torch.zeros(get("weight_scale").shape, dtype=torch.int8)
        return unpacked(get("weight_zero_point").mT, self.bits).mT.contiguous()

    def integers(self, get: Get) -> Integers:
        return Integers(unpacked(get("weight_packed"), self.bits), get("weight_scale"), self.zeros(get))


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Return the values in int32 words [..., N], lowest bits first, less 2^(bits - 1): int8 [..., N * 32 / bits]."""
    parts = words.contiguous().view(torch.uint8)  # the lowest bits are in the first byte
    values = torch.stack((parts & 15, parts >> 4), -1).flatten(-2) if bits == 4 else parts
    return (values - (1 << (bits - 1))).view(torch.int8)


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Return the layout that a `quantization_config` describes. Raises UsageError for one that is not supported."""
    readers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}
    method = config.get("quant_method")
    if method not in readers:
        raise UsageError(f"{_CONFIG}.quant_method ({method!r}) must be {' or '.join(readers)}")
    return readers[method](config)


def _gptq(config: Mapping[str, Any]) -> Layout:
    stored = config.get("checkpoint_format") or config.get("format") or "gptq"
    if stored not in _GPTQ_FORMATS:
        raise UsageError(f"{_CONFIG}.checkpoint_format ({stored!r}) must be {' or '.join(_GPTQ_FORMATS)}")
    return Gptq(_bits(config, "bits"), _group(config, "group_size"), stored == "gptq")


def _awq(config: Mapping[str, Any]) -> Layout:
    version = config.get("version") or config.get("format") or "gemm"
    if str(version).lower() != "gemm":
        raise UsageError(f"{_CONFIG}.version ({version!r}) must be 'gemm'")
    # AutoAWQ has two names for these keys: transformers', and its own with a letter in front.
    bits = _bits(config, "bits" if "bits" in config else "w_bit", (4,))
    return Awq(bits, _group(config, "group_size" if "group_size" in config else "q_group_size"))


def _compressed_tensors(config: Mapping[str, Any]) -> Layout:
    groups = list((config.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise UsageError(f"{_CONFIG}.config_groups must have one group, which all layers share, not {len(groups)}")
    stored = groups[0].get("format") or config.get("format")
    if stored != "pack-quantized":
        raise UsageError(f"{_CONFIG}.format ({stored!r}) must be 'pack-quantized'")
    if groups[0].get("input_activations"):
        raise UsageError(f"{_CONFIG}: input_activations must be null, because activations are not quantised")
    if config.get("kv_cache_scheme"):
        raise UsageError(f"{_CONFIG}.kv_cache_scheme must be null: its scales are not read")
    weights = groups[0].get("weights") or {}
    for name, known in (("type", ("int",)), ("strategy", ("group", "channel"))):
        if weights.get(name) not in known:
            raise UsageError(f"{_CONFIG}: {name} of the weights ({weights.get(name)!r}) must be {' or '.join(known)}")
    group = _group(weights, "group_size") if weights["strategy"] == "group" else None
    return CompressedTensors(_bits(weights, "num_bits"), group, bool(weights.get("symmetric", True)))


def _bits(config: Mapping[str, Any], name: str, known: tuple[int, ...] = _BITS) -> int:
    bits = config.get(name)
    if type(bits) is not int or bits not in known:
        raise UsageError(f"{_CONFIG}: {name} ({bits!r}) must be {' or '.join(map(str, known))}")
    return bits


def _group(config: Mapping[str, Any], name: str) -> int | None:
    group = config.get(name)
    if type(group) is not int or (group < 1 and group != -1):
        raise UsageError(f"{_CONFIG}: {name} ({group!r}) must be a number of inputs, or -1 for all inputs of an output")
    return None if group == -1 else group
