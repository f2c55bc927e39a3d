"""How the weights of a matrix are stored in an engine, and the shapes of packed weights (kernels/paths.h).

Shapes: [...] is any number of leading axes; N outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtllm_pt.backends.embedded.constants import STEP_BYTES, TILE
from trtllm_pt.model.quantization import WEIGHT_ONLY

_LINE_BYTES = TILE * STEP_BYTES


@dataclass(frozen=True, slots=True)
class Form:
    """How a quantised matrix is stored."""

    bits: int  # 8 or 4
    groups: int  # of inputs that share an output's scale
    zeros: bool = False  # whether groups have zero points
    integer: bool = False  # whether products quantise activations too, to multiply integers

    def to_list(self) -> list[int]:
        """Return the ops' argument `form`."""
        return [self.bits, self.groups, int(self.zeros), *([1] if self.integer else [])]

    def header_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of a tile before its codes, for scales in `dtype`."""
        used = self.groups * TILE * dtype.itemsize * (1 + self.zeros)
        return -(-used // _LINE_BYTES) * _LINE_BYTES


@dataclass(frozen=True, slots=True)
class Storage:
    """How all weights of a model are stored, and its KV cache."""

    dtype: torch.dtype
    quant_algo: str | None = None  # of the layers' matrices
    embedding_quant_algo: str | None = None  # of the embedding and the output head
    kv_cache_quant_algo: str | None = None
    integer_products: bool = False  # of the layers' matrices

    @property
    def embedding_form(self) -> Form | None:
        """The form of the embedding and of the output head, or None if they are not quantised."""
        return None if self.embedding_quant_algo is None else Form(WEIGHT_ONLY[self.embedding_quant_algo].bits, 1)

    def form(self, columns: int) -> Form | None:
        """Return the form of a layer's matrix with `columns` inputs on this rank, or None if it is not quantised."""
        if self.quant_algo is None:
            return None
        kind = WEIGHT_ONLY[self.quant_algo]
        return Form(kind.bits, columns // (kind.group or columns), kind.zeros, self.integer_products)


def packed_shape(shape: tuple[int, ...], dtype: torch.dtype, form: Form | None = None) -> tuple[int, ...]:
    """Return the shape of a packed matrix [..., N, I].

    Not quantised: [..., ceil(N / 16), ceil(I / e), 16 * e], where e is STEP_BYTES divided by the size of an element.
    Quantised: [..., ceil(N / 16), bytes of a tile].
    """
    *lead, rows, columns = shape
    tiles = -(-rows // TILE)
    if form is not None:
        return (*lead, tiles, form.header_bytes(dtype) + TILE * columns * form.bits // 8)
    inputs = STEP_BYTES // dtype.itemsize
    return (*lead, tiles, -(-columns // inputs), TILE * inputs)
