"""The communicator of a job's ranks for the collectives in their plans."""

from __future__ import annotations

import ctypes
from typing import Any

from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.job.world import World

_LIBRARY = "libnccl.so.2"  # torch has loaded it; TensorRT loads it under the same name
_CAPSULE = b"ncclComm_t"  # the name by which TensorRT knows the capsule, which keeps a pointer to it
_INSTALL = "`pip install -U nvidia-nccl-cu13`"
_OLDEST = 23000  # 2.30, the first version that TensorRT's collectives run with


class _UniqueId(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char * 128),)


def communicator(world: World) -> Any:
    """Return a capsule with an ncclComm_t of all ranks. The GPU of this process must be the current one.

    Every rank has to make this call. The communicator lives as long as the process. Raises UsageError if NCCL is
    missing or too old, and RunError if it fails.
    """
    nccl = _library()
    own = _UniqueId()
    if world.rank == 0:
        _check(nccl, nccl.ncclGetUniqueId(ctypes.byref(own)))
    shared = _UniqueId.from_buffer_copy(world.broadcast(bytes(own)))
    found = ctypes.c_void_p()
    _check(nccl, nccl.ncclCommInitRank(ctypes.byref(found), world.size, shared, world.rank))
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new_capsule(found, _CAPSULE, None)


def _library() -> ctypes.CDLL:
    try:
        nccl = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise UsageError(f"NCCL, which several ranks need, does not load ({error}): {_INSTALL}") from None
    nccl.ncclGetErrorString.restype = ctypes.c_char_p
    nccl.ncclCommInitRank.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, _UniqueId, ctypes.c_int)
    version = ctypes.c_int()
    _check(nccl, nccl.ncclGetVersion(ctypes.byref(version)))
    if version.value < _OLDEST:
        have = f"{version.value // 10000}.{version.value // 100 % 100}"
        raise UsageError(f"NCCL {have} is loaded, and TensorRT's collectives need 2.30 or later: {_INSTALL}")
    return nccl


def _check(nccl: ctypes.CDLL, status: int) -> None:
    if status:
        raise RunError(f"NCCL failed: {nccl.ncclGetErrorString(status).decode()}")
