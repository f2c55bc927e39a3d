"""The kinds of error a user meets. The command line prints one line and exits with `exit_status`."""

INSTALL_EMBEDDED = "pip install -e '.[embedded]'"  # what many a message ends with
# What more than one rank needs, by the engine that they run.
MPI_OF_EMBEDDED = f"mpi4py and MPICH, `{INSTALL_EMBEDDED}`"
INSTALL_SERVE = "pip install -e '.[embedded,serve]'"
TENSORRT_LLM_VERSION = "1.2.1"  # the last stable line that has TensorRT engines; one that builds and runs them
INSTALL_TENSORRT_LLM = (
    f"use tensorrt-llm=={TENSORRT_LLM_VERSION} (TensorRT 10.14) on NVIDIA GPUs: the container "
    f"nvcr.io/nvidia/tensorrt-llm/release:{TENSORRT_LLM_VERSION}, "
    "or nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3 to serve"
)
MPI_OF_TENSORRT_LLM = f"mpi4py and Open MPI, {INSTALL_TENSORRT_LLM}"


class TrtllmPtError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_status = 1


class UsageError(TrtllmPtError):
    """The user's mistake, or something that the machine lacks; nothing was written."""

    exit_status = 2


class RunError(TrtllmPtError):
    """A failure while running; the message says what was kept."""

    exit_status = 1
