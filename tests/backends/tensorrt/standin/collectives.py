"""In place of trtllm_pt.backends.tensorrt.nccl: a communicator that is MPI's, in a capsule as NCCL's would be."""

from __future__ import annotations

import ctypes
from typing import Any

from trtllm_pt.job.world import World

NAME = b"ncclComm_t"
_COMMUNICATORS: list[Any] = []  # of mpi4py; a capsule points to its number in this list, plus 1


def communicator(world: World) -> Any:
    assert world.comm is not None
    _COMMUNICATORS.append(world.comm.Dup())
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(len(_COMMUNICATORS), NAME, None)


def in_capsule(capsule: Any) -> Any:
    """mpi4py's communicator."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _COMMUNICATORS[pointer(capsule, NAME) - 1]
