"""In place of the packages tensorrt and tensorrt_rtx: the classes that run plans, and no others.

What the real classes refuse or leave undefined is an assertion here: an address that is missing or not aligned, a shape
outside the profile, a cache whose output is elsewhere, a rank without a communicator.
"""

from __future__ import annotations

import ctypes
import enum
import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tests.backends.tensorrt.standin.plan_file import Shape, StandInPlan
from trtllm_pt.backends.tensorrt.interpreter.execute import execute
from trtllm_pt.backends.tensorrt.interpreter.lockstep import meet

__version__ = {"tensorrt": "11.4.0.106"}.get(__name__, "1.7.1.116")
ALIGNMENT = 256


class CollectiveOperation(enum.Enum):
    ALL_REDUCE = 0


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


if __name__ != "tensorrt":  # TensorRT-RTX alone makes CUDA graphs itself

    class CudaGraphStrategy(enum.Enum):
        DISABLED = 0
        WHOLE_GRAPH_CAPTURE = 1


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1

    def log(self, severity: Severity, msg: str) -> None: ...


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        try:
            plan = pickle.loads(serialized_engine)
        except Exception:
            self._logger.log(
                ILogger.Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: the magic tag is wrong"
            )
            return None
        if plan.version != __version__:
            self._logger.log(ILogger.Severity.ERROR, f"the plan is of version {plan.version}")
            return None
        return ICudaEngine(plan)


class ICudaEngine:
    def __init__(self, plan: StandInPlan) -> None:
        self._plan = plan
        self._inputs = {value.name: value for value in plan.program.inputs}
        made = {value.name: value for layer in plan.program.layers for value in layer.outputs}
        self._outputs = {name: made[name] for name in plan.program.outputs}
        self._names = [*self._inputs, *self._outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> Shape:
        return (self._inputs | self._outputs)[name].shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        return list(self._plan.profiles[profile_index][name])

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 1024 * (profile_index + 1)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        return IExecutionContext(self, runtime_config)


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        if __name__ != "tensorrt":
            self.cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        assert config._strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._engine, self._config = engine, config
        self._memory = 0
        self._profile = 0
        self._communicator: Any = None
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        self._memory = size

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert self._memory >= self._engine.get_device_memory_size_for_profile_v2(profile_index)
        self._profile = profile_index
        return True

    def set_communicator(self, communicator: Any) -> bool:
        from trtllm_pt.backends.tensorrt.nccl import in_capsule  # type: ignore[attr-defined]  # collectives.py

        self._communicator = in_capsule(communicator)
        self._communicator.Barrier()
        return bool(self._communicator.size == self._engine._plan.ranks)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        least, _, most = self._engine._plan.profiles[self._profile][name]
        self._shapes[name] = tuple(shape)
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._engine._names
        self._addresses[name] = memory
        return memory > 0 and memory % ALIGNMENT == 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Start a step with the shapes and addresses of now, which a graph keeps."""
        from trtllm_pt.backends.tensorrt.gpu import start  # type: ignore[attr-defined]  # cuda.py

        engine, plan = self._engine, self._engine._plan
        assert set(self._addresses) == set(engine._names) and set(self._shapes) == set(engine._inputs)
        assert (self._communicator is not None) == (plan.ranks > 1)
        for name in engine._outputs:
            if name != "logits":
                assert self._addresses[name] == self._addresses[name.removeprefix("new_")], f"{name} is elsewhere"
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        started = start(stream_handle, lambda: self._execute(shapes, addresses))
        return started and ("STAND_IN_FAILS" not in os.environ or shapes["tokens"][1] > 1)

    def _execute(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        engine = self._engine
        inputs = {name: _at(addresses[name], value.dtype, shapes[name]) for name, value in engine._inputs.items()}
        execution, result = execute(engine._plan.program, inputs), None
        try:
            while True:
                meeting = execution.send(result)  # type: ignore[arg-type]  # None starts a generator
                result = meet(self._communicator.allgather(meeting))
        except StopIteration as end:
            for name, value in end.value.items():
                _at(addresses[name], value.dtype, value.shape).copy_(value)


def _at(address: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """The tensor at an address."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(tuple(shape))
