"""How NCCL is called, on a library of our own that checks what it gets: there is no other way without GPUs."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trtllm_pt.backends.tensorrt import nccl
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.job.world import World

SOURCE = """
#include <string.h>
typedef struct { char internal[128]; } ncclUniqueId;
typedef struct { int size, rank, first, last; } *ncclComm_t;
int ncclGetVersion(int *version) { *version = VERSION; return 0; }
int ncclGetUniqueId(ncclUniqueId *id) { for (int i = 0; i < 128; ++i) id->internal[i] = i; return 0; }
int ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank) {
  static struct { int size, rank, first, last; } made;
  made.size = size; made.rank = rank; made.first = id.internal[0]; made.last = id.internal[127];
  *comm = (ncclComm_t) &made;
  return rank < size ? 0 : 5;
}
const char *ncclGetErrorString(int status) { return status == 5 ? "invalid usage" : "unknown"; }
"""


def library(folder: Path, version: int) -> str:
    source, path = folder / "nccl.c", folder / "libnccl.so"
    source.write_text(SOURCE.replace("VERSION", str(version)))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return str(path)


class Ranks(World):
    """One of two ranks, which gets the id that rank 0 has."""

    def __init__(self, rank: int) -> None:
        super().__init__(None)
        self.rank, self.size = rank, 2

    def broadcast(self, value: Any) -> Any:
        return bytes(range(128))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_capsule_has_the_communicator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(nccl, "_LIBRARY", library(tmp_path, 23004))
    capsule = nccl.communicator(Ranks(rank))
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    found = (ctypes.c_int * 4).from_address(pointer(capsule, b"ncclComm_t"))
    assert list(found) == [2, rank, 0, 127]


@pytest.mark.parametrize(
    ("version", "rank", "error", "message"),
    [
        (22907, 0, UsageError, "NCCL 2.29 is loaded, and TensorRT's collectives need 2.30 or later: `pip install"),
        (23000, 7, RunError, "NCCL failed: invalid usage"),
    ],
)
def test_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, rank: int, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(nccl, "_LIBRARY", library(tmp_path, version))
    with pytest.raises(error, match=message):
        nccl.communicator(Ranks(rank))


def test_without_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "_LIBRARY", "libnothing.so.2")
    with pytest.raises(UsageError, match="NCCL, which several ranks need, does not load"):
        nccl.communicator(Ranks(0))
