"""The errors that users can see. The command line prints each of them as one line and exits with `exit_status`."""

# These hints work for a wheel and for a clone: pip leaves an installed trtllm_pt as it is, and adds the extra's
# packages.
INSTALL_EMBEDDED = "pip install 'trtllm_pt[embedded]'"
INSTALL_SERVE = "pip install 'trtllm_pt[embedded,serve]'"
# What several ranks need, for each engine.
MPI_OF_EMBEDDED = f"mpi4py and MPICH, `{INSTALL_EMBEDDED}`"
TENSORRT_LLM_VERSION = "1.2.1"  # the last stable release that builds and runs TensorRT engines
INSTALL_TENSORRT_LLM = (
    f"use tensorrt-llm=={TENSORRT_LLM_VERSION} (TensorRT 10.14) on NVIDIA GPUs: the container "
    f"nvcr.io/nvidia/tensorrt-llm/release:{TENSORRT_LLM_VERSION}, "
    "or nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3 to serve"
)
MPI_OF_TENSORRT_LLM = f"mpi4py and Open MPI, {INSTALL_TENSORRT_LLM}"


class TrtllmPtError(Exception):
    """The base class of all errors that this package raises on purpose."""

    exit_status = 1


class UsageError(TrtllmPtError):
    """The user made a mistake, or the machine lacks something. No file was written."""

    exit_status = 2


class MachineError(UsageError):
    """A machine of a job is at fault. The message names it, whichever rank reports it."""


class RunError(TrtllmPtError):
    """Something failed while running. The message says which output was kept."""

    exit_status = 1
