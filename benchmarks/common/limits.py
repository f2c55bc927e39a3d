"""The limits of this machine: how fast it reads memory, and how fast any library multiplies matrices on it."""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trtllm_pt.backends.embedded.kernels.build import build_library
from trtllm_pt.backends.embedded.kernels.library import load
from trtllm_pt.errors import RunError
from trtllm_pt.files.compiler import compile_cpp

_SOURCE = Path(__file__).parent / "read_stream.cpp"
_READ_BYTES = 640 << 20  # more than the caches hold
_SAMPLE_SECONDS = 0.05  # of repeated calls
_STEP, _LINE = 512, 64  # bytes: what one pass of the loop reads, and the alignment of its start


class ReadStream:
    """A read of a large buffer by several threads. Raises UsageError if there is no C++ compiler."""

    def __init__(self, threads: int) -> None:
        self._read = _compiled().read_stream
        self._read.argtypes, self._read.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_uint64
        self._part = _READ_BYTES // threads // _STEP * _STEP
        # numpy asks for huge pages. The buffer is written, because untouched pages are not allocated.
        self._buffer = np.ones(self._part * threads + _LINE, np.uint8)
        first = -(-self._buffer.ctypes.data // _LINE) * _LINE
        self._addresses = [first + thread * self._part for thread in range(threads)]
        self._pool = ThreadPoolExecutor(threads)
        self()

    def __call__(self) -> float:
        """Return the bytes per second of the better of two passes."""
        return self._part * len(self._addresses) / min(self._pass() for _ in range(2))

    def _pass(self) -> float:
        began = time.perf_counter()
        list(self._pool.map(lambda address: self._read(address, self._part), self._addresses))
        return time.perf_counter() - began


def _compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as folder:
        library = Path(folder) / "read_stream.so"
        compile_cpp(["-O3", "-std=c++20", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)])
        return ctypes.CDLL(str(library))


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product [m, k] x [k, n]."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k

    def __str__(self) -> str:
        return f"{self.m} x {self.n} x {self.k}"


# A square product, and products of 512 tokens: the FFNs of the 150M and 1B models, and a large head.
PRODUCTS = (Product(2048, 2048, 2048), Product(512, 5632, 1024), Product(512, 8192, 2048), Product(512, 32000, 2048))


class Matrix:
    """A way to multiply by a weight that was prepared before. A call returns FLOP per second."""

    def __init__(self, name: str, product: Product, dtype: torch.dtype, work: Callable[[], object]) -> None:
        self.name, self.product, self.dtype, self._work = name, product, dtype, work

    def __call__(self) -> float:
        began = time.perf_counter()
        self._work()
        return self.product.flops / (time.perf_counter() - began)


def load_ops() -> None:
    """Load the engine's ops, compiled from the current sources, into this process."""
    with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as folder:
        load(build_library(Path(folder)))


def matrices(product: Product, dtype: torch.dtype) -> list[Matrix]:
    """Return every way to multiply that this machine has, with the current threads of torch. The ops must be loaded.

    Raises RunError if one of them returns a wrong product.
    """
    x, weight = torch.randn(product.m, product.k).to(dtype), torch.randn(product.n, product.k).to(dtype)
    packed = torch.ops.trtllm_pt.pack(weight[None])
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "torch": lambda: torch.nn.functional.linear(x, weight),
        "trtllm_pt": lambda: torch.ops.trtllm_pt.linear(x[None], packed, None, product.n)[0],
    }
    if torch._C._has_mkldnn and (dtype != torch.bfloat16 or _onednn_has_bfloat16()):
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, product.m)
        ways["oneDNN, packed"] = lambda: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], "")
    right = ways["torch"]()
    for name, way in ways.items():
        error = float((way() - right).norm() / right.norm())
        if not error < 0.01:
            raise RunError(f"{name}: {product} in {dtype} is off by {error:.1%}")
    return [Matrix(name, product, dtype, way) for name, way in ways.items()]


def _onednn_has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fastest(found: list[Matrix], samples: int = 3) -> Matrix:
    """Return the fastest way, by the best of a few calls of each."""
    return max(found, key=lambda matrix: max(matrix() for _ in range(samples)))


def fastest_at(m: int, n: int, k: int) -> Matrix:
    """Return the fastest way to multiply [m, k] by [k, n], in bfloat16 or float32. The ops must be loaded."""
    return fastest([way for dtype in (torch.bfloat16, torch.float32) for way in matrices(Product(m, n, k), dtype)])


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes, as the mean of the calls within 0.05 seconds."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < _SAMPLE_SECONDS:
        call()
        calls += 1
    return (time.perf_counter() - began) / calls


def medians(ways: list[Callable[[], float]], rounds: int) -> list[tuple[float, float, float]]:
    """Return the median, minimum and maximum of each way. They take turns, so that noise affects all alike."""
    samples = np.array([[way() for way in ways] for _ in range(rounds)])
    columns = np.median(samples, 0), samples.min(0), samples.max(0)
    return [(float(m), float(low), float(high)) for m, low, high in zip(*columns, strict=True)]
