"""Logits as numpy sees them."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from torch import Tensor

_MOST = 64


class Views:
    """Tensors as numpy arrays, made once for each place in memory: the engine's logits come to lie at few, and out of
    cold caches, as after a step, Tensor.numpy takes 30 to 50 us."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._arrays: dict[int, npt.NDArray[np.float32]] = {}  # by address

    def of(self, tensor: Tensor, rows: int) -> npt.NDArray[np.float32]:
        """float32 [rows, columns] of a contiguous float32 [rows, columns or more]; good while the tensor lives."""
        address = tensor.data_ptr()
        array = self._arrays.get(address)
        if array is None or len(array) != rows:
            assert tensor.is_contiguous() and len(tensor) == rows
            if len(self._arrays) == _MOST:
                self._arrays.clear()
            place = (ctypes.c_float * tensor.numel()).from_address(address)  # it does not keep the tensor
            array = self._arrays[address] = np.ctypeslib.as_array(place).reshape(tensor.shape)[:, : self.columns]
        return array
