"""View logits as NumPy arrays."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from torch import Tensor

_MOST = 64


class Views:
    """Returns tensors as NumPy arrays, and keeps one array for each address.

    The engine's logits are at few different addresses, and Tensor.numpy takes 30 to 50 us with cold CPU caches, as they
    are after a step.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._arrays: dict[int, npt.NDArray[np.float32]] = {}  # by address

    def of(self, tensor: Tensor, rows: int) -> npt.NDArray[np.float32]:
        """Return the first columns of a contiguous float32 tensor as an array, float32 [rows, columns].

        The array does not keep the tensor alive, and is valid only as long as the tensor.
        """
        address = tensor.data_ptr()
        array = self._arrays.get(address)
        if array is None or len(array) != rows:
            assert tensor.is_contiguous() and len(tensor) == rows
            if len(self._arrays) == _MOST:
                self._arrays.clear()
            place = (ctypes.c_float * tensor.numel()).from_address(address)
            array = self._arrays[address] = np.ctypeslib.as_array(place).reshape(tensor.shape)[:, : self.columns]
        return array
