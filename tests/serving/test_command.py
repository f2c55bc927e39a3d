"""The command line that starts tritonserver: what cannot run here, word by word."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.errors import MPI_OF_TENSORRT_LLM
from trtllm_pt.job.mpirun import find_mpirun
from trtllm_pt.serving.triton.find import Triton
from trtllm_pt.serving.triton.server import Address, server_command

TRITON = Triton(binary=Path("/t/tritonserver"), options=("--backend-directory=/t/backends",), environment={})
COMMON = ["/t/tritonserver", "--backend-directory=/t/backends", "--model-repository=/r"]
COMMON += ["--disable-auto-complete-config", "--backend-config=python,thread-pool-size=288", "--exit-timeout-secs=15"]
PORTS = ["--http-address=10.0.0.1", "--http-port=1", "--grpc-address=10.0.0.1", "--grpc-port=2"]
PORTS += ["--metrics-address=10.0.0.1", "--metrics-port=3"]
SILENT = ["--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"]
SILENT += ["--model-control-mode=explicit", "--load-model=tensorrt_llm"]
ADDRESS = Address(host="10.0.0.1", http=1, grpc=2, metrics=3)


def prefix(rank: int) -> str:
    return f"--backend-config=python,shm-region-prefix-name=p-{rank}-"


def test_one_server_has_the_ports() -> None:
    assert server_command(TRITON, Path("/r"), ADDRESS, 1, "p").command == [*COMMON, *PORTS, prefix(0)]


def test_tensorrt_engines_get_a_server_per_rank_and_the_first_leads() -> None:
    assert server_command(TRITON, Path("/r"), ADDRESS, 3, "p").command == [
        find_mpirun(MPI_OF_TENSORRT_LLM),
        *["-n", "1", *COMMON, *PORTS, prefix(0)],
        *[":", "-n", "1", *COMMON, *SILENT, prefix(1)],
        *[":", "-n", "1", *COMMON, *SILENT, prefix(2)],
    ]
