"""A loaded plan of one rank: its KV cache, its execution contexts, and the memory that it reads and writes.

Shapes: B slots of a step, R rows of logits, V padded vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.tensorrt.gpu import Gpu
from trtllm_pt.backends.tensorrt.log import Log
from trtllm_pt.backends.tensorrt.profiles import DECODE, PREFILL, profiles_of, slot_size_of
from trtllm_pt.backends.tensorrt.slot_plan import INPUTS, Layout, StepMessage
from trtllm_pt.backends.tensorrt.slot_scheduler import decode_sizes
from trtllm_pt.errors import RunError, UsageError

log = logging.getLogger(__name__)
_MEMORY_SHARE = 0.9  # share of the GPU's free memory for the KV cache
REBUILD = "run `trtllm-pt build` again"


class RankEngine:
    """The plan of one rank on its GPU. Call `allocate` and then `prepare` before the first step.

    Raises UsageError for a plan that TensorRT cannot load here, or that does not fit the manifest.
    """

    def __init__(self, trt: ModuleType, plan: Path, manifest: EngineManifest, gpu: Gpu) -> None:
        self.gpu, self.manifest = gpu, manifest
        self._trt, self._log = trt, Log()
        self._runtime = trt.Runtime(self._log.listen(trt))
        try:
            data = plan.read_bytes()
        except OSError as error:
            raise UsageError(f"{plan} cannot be read ({error.strerror}): {REBUILD}") from None
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise UsageError(f"{plan} does not load on {gpu.name} ({self._log.reason()}): {REBUILD}")
        self._check_profiles(plan)
        self._decode, self._prefill = profiles_of(manifest.options)
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        caches = [name for name in names if modes[name] == trt.TensorIOMode.INPUT and name not in INPUTS]
        self._cache_shapes = {name: tuple(self._engine.get_tensor_shape(name))[1:] for name in caches}
        profiles = range(self._engine.num_optimization_profiles)
        scratch = max(self._engine.get_device_memory_size_for_profile_v2(number) for number in profiles)
        self._scratch = gpu.zeros((max(1, scratch),), torch.uint8)

    def _check_profiles(self, plan: Path) -> None:
        """Raise UsageError if the plan was compiled for other sizes than config.json says."""
        options = self.manifest.options
        wanted = [(each.slots[2], each.each[2], each.rows[2]) for each in profiles_of(options)]
        engine, found = self._engine, []
        for number in range(engine.num_optimization_profiles):
            most = {name: tuple(engine.get_tensor_profile_shape(name, number)[2]) for name in ("tokens", "last")}
            found.append((*most["tokens"], *most["last"]))
        size = tuple(engine.get_tensor_shape("keys_0"))[2]
        if found != wanted or size != slot_size_of(options.max_seq_len):
            raise UsageError(
                f"{plan} was not compiled for max_batch_size {options.max_batch_size}, max_seq_len "
                f"{options.max_seq_len} and max_num_tokens {options.max_num_tokens}, which config.json has: {REBUILD}"
            )

    # Memory

    def affordable_slots(self) -> int:
        """Return how many slots of the KV cache fit into the GPU's free memory, at most max_batch_size."""
        numbers = sum(torch.Size(shape).numel() for shape in self._cache_shapes.values())
        slot_bytes = numbers * self.manifest.checkpoint.torch_dtype.itemsize
        return min(self.manifest.options.max_batch_size, int(self.gpu.free_bytes() * _MEMORY_SHARE) // slot_bytes)

    def allocate(self, slots: int) -> None:
        """Allocate the KV cache and the memory of inputs and logits.

        The cache begins with zeros: prefill kernels multiply what lies behind a sequence by 0, and 0 times the NaN that
        unwritten memory may hold is NaN.
        """
        self.slots = slots
        dtype = self.manifest.checkpoint.torch_dtype
        self._caches = {name: self.gpu.zeros((slots, *shape), dtype) for name, shape in self._cache_shapes.items()}
        rows = max(slots, self._prefill.rows[2])
        room = StepMessage.room_for(slots, self._prefill.each[2], self._prefill.rows[2])
        self.message = StepMessage(self.gpu.on_host((room,), torch.int32))
        self._inputs = self.gpu.zeros((room,), torch.int32)
        shape = (rows, tuple(self._engine.get_tensor_shape("logits"))[1])
        self._logits = self.gpu.zeros(shape, torch.float32)
        self._host_logits = self.gpu.on_host(shape, torch.float32)
        self.logits = self._host_logits.numpy()  # float32 [R, V] of the last step, as far as it asked for them
        self._copies: dict[tuple[bool, int], tuple[Tensor, Tensor]] = {}

    def prepare(self, communicator: Any) -> None:
        """Create the execution contexts: one for each size of a decode step, because each has a CUDA graph of its own,
        and one for chunks. communicator: a capsule for several ranks, which all have to make this call; or None."""
        self._steps: dict[int, Callable[[], None]] = {}
        for size in decode_sizes(self.slots):
            context = self._context(DECODE, communicator)
            self._bind(context, Layout.of(DECODE, 0, size, 1, size), self._caches)
            self._steps[size] = self._first(size, context)
        self._chunks = self._context(PREFILL, communicator)
        self._chunk: Layout | None = None  # for which `_chunks` is set

    def _context(self, profile: int, communicator: Any) -> Any:
        """Return a context that shares its scratch memory with all others, since they never run at the same time."""
        trt, config = self._trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if profile == DECODE and self._graphs_itself:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = self._engine.create_execution_context(config)
        if context is None:
            raise self._failed("creating an execution context")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        self._must(context.set_optimization_profile_async(profile, self.gpu.stream), "choosing a profile")
        self.gpu.wait()
        if communicator is not None:
            self._must(context.set_communicator(communicator), "setting the NCCL communicator")
        return context

    @property
    def _graphs_itself(self) -> bool:
        """Whether TensorRT makes CUDA graphs itself. TensorRT-RTX does, because its kernels change while it runs."""
        return hasattr(self._trt, "CudaGraphStrategy")

    def _bind(self, context: Any, layout: Layout, caches: Mapping[str, Tensor]) -> None:
        """Set the shapes and addresses of a context. A cache and its output are the same memory."""
        begin = self._inputs.data_ptr()
        for (name, shape), offset in zip(layout.shapes().items(), layout.offsets, strict=True):
            self._must(context.set_input_shape(name, shape), f"the shape {shape} of {name}")
            self._must(context.set_tensor_address(name, begin + 4 * offset), f"the address of {name}")
        for name, cache in caches.items():
            self._must(context.set_input_shape(name, (layout.slots, *cache.shape[1:])), f"the shape of {name}")
            address = cache.data_ptr() + layout.slot * cache[0].numel() * cache.itemsize
            for each in (name, f"new_{name}"):
                self._must(context.set_tensor_address(each, address), f"the address of {each}")
        self._must(context.set_tensor_address("logits", self._logits.data_ptr()), "the address of logits")

    # Steps

    def run(self, rows: int) -> None:
        """Run the step in `message`, and copy the first `rows` rows of logits to the host."""
        layout, gpu = self.message.layout, self.gpu
        gpu.copy(*self._copy(False, layout.size))
        if layout.profile == DECODE:
            self._steps[layout.slots]()
        else:
            self._run_chunk(layout)
        if rows:
            gpu.copy(*self._copy(True, rows))
        gpu.wait()

    def _copy(self, logits: bool, count: int) -> tuple[Tensor, Tensor]:
        """Return where and what to copy: rows of logits to the host, or numbers of the message to the GPU.

        They are kept, because to make views of tensors takes microseconds in each step.
        """
        found = self._copies.get((logits, count))
        if found is None:
            pair = (self._host_logits, self._logits) if logits else (self._inputs, self.message.tensor)
            found = self._copies[logits, count] = (pair[0][:count], pair[1][:count])
        return found

    def _run_chunk(self, layout: Layout) -> None:
        if layout != self._chunk:
            caches = {} if self._chunk is not None and layout.slot == self._chunk.slot else self._caches
            self._bind(self._chunks, layout, caches)
            self._chunk = layout
        self._execute(self._chunks)

    def _first(self, size: int, context: Any) -> Callable[[], None]:
        """Return a function for the first decode step of a size. It runs the context, and then makes a CUDA graph of it
        for the next one, because TensorRT prepares itself in the first run."""

        def step() -> None:
            self._execute(context)
            self._steps[size] = lambda: self._execute(context)
            if not self._graphs_itself:
                self._steps[size] = self._graph(size, context)

        return step

    def _graph(self, size: int, context: Any) -> Callable[[], None]:
        self.gpu.wait()
        try:
            return self.gpu.capture(lambda: self._execute(context))
        except (RuntimeError, RunError) as error:  # of CUDA, or of TensorRT, which refuses to start during a capture
            log.warning("no CUDA graph for decode steps of %d slots: %s", size, str(error).splitlines()[0])
            return lambda: self._execute(context)

    def _execute(self, context: Any) -> None:
        self._must(context.execute_async_v3(self.gpu.stream), "a step")

    def _must(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise self._failed(what)

    def _failed(self, what: str) -> RunError:
        return RunError(f"TensorRT failed at {what}: {self._log.reason()}")
