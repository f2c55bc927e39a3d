"""One rank of vLLM that runs several models one after another: python -m … RANK RANKS FOLDER.

FOLDER/plan.json is a list of [model, folder, one of MODES]. Rank 0 writes FOLDER/MODEL.MODE.json for each. The ranks
are started by the test (vLLM's "external launcher"), because importing vLLM takes longer than any of the models.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.vllm_plugin.on_vllm.models import ALONE, LONGEST, TOKENS, prompts

RANK, RANKS, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
MODES: dict[str, dict[str, Any]] = {
    "eager": {"dtype": "float32", "enforce_eager": True},
    "compiled": {"dtype": "float32", "enforce_eager": False},
    "bfloat16": {"dtype": "bfloat16", "enforce_eager": True},
    "gloo": {"dtype": "bfloat16", "enforce_eager": True},  # between the ranks, as between machines
}
ALL_REDUCE = {"gloo": "c10d::allreduce_"}  # the op that the profiler sees; in the other modes that of shared memory
os.environ |= {  # read when vLLM is imported
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "OMP_NUM_THREADS": "1",  # there may be more ranks than cores, and vLLM binds only processes that it has started
    "VLLM_DISABLE_COMPILE_CACHE": "1",  # so that all models and ranks share the next folder, and compile a kernel once
    "TORCHINDUCTOR_CACHE_DIR": str(Path(sys.prefix) / "kernels"),
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "RANK": str(RANK),
    "LOCAL_RANK": str(RANK),
    "WORLD_SIZE": str(RANKS),
    "LOCAL_WORLD_SIZE": str(RANKS),
    "MASTER_ADDR": "127.0.0.1",
}


class Forwards:
    """Counts the forward passes. The outer model is not compiled, so its method can be replaced."""

    def __init__(self) -> None:
        from trtllm_pt.vllm_plugin.model import ParallelTrackForCausalLM

        self.seen = 0
        original = ParallelTrackForCausalLM.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.seen += 1
            return original(*args, **kwargs)

        ParallelTrackForCausalLM.forward = counted  # type: ignore[method-assign]


class Sums:
    """The dtypes of what the ranks exchange, as far as Python sees them."""

    def __init__(self) -> None:
        from trtllm_pt.vllm_plugin import model

        self.dtypes: set[str] = set()
        original = model.tensor_model_parallel_all_reduce

        def watched(part: Any) -> Any:
            self.dtypes.add(str(part.dtype))
            return original(part)

        model.tensor_model_parallel_all_reduce = watched


@contextmanager
def apart() -> Iterator[None]:
    """Let vLLM see that the ranks share no memory, as on several machines, so that it uses gloo."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    original = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"rank-{communicator.rank}")
    try:
        yield
    finally:
        _CPUSHMDistributed.make_group_name = staticmethod(original)


class Mapped:
    """The most bytes of a model's file that were in this process's memory while vLLM loaded it."""

    def __init__(self) -> None:
        from trtllm_pt.vllm_plugin import model

        self.most = 0
        original = model.load

        def watched(network: Any, weights: Iterable[Any]) -> set[str]:
            def each() -> Iterator[Any]:
                self.most = 0
                for item in weights:
                    yield item
                    self.most = max(self.most, resident("model.safetensors"))

            return original(network, each())

        model.load = watched


def resident(name: str) -> int:
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:  # a mapping begins with its addresses
            ours = line.endswith(name)
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    forwards, mapped, sums = Forwards(), Mapped(), Sums()
    for name, folder, mode in json.loads((FOLDER / "plan.json").read_text()):
        sums.dtypes.clear()
        with apart() if mode == "gloo" else nullcontext():
            llm = engine(folder, mode)
        result = measured(llm, forwards, ALL_REDUCE.get(mode, "_C::shm_allreduce"))
        result |= {"mapped": mapped.most, "summed": sorted(sums.dtypes)}
        if RANK == 0:
            (FOLDER / f"{name}.{mode}.json").write_text(json.dumps(result))
        end(llm)
        del llm


def engine(folder: str, mode: str) -> Any:
    import vllm

    return vllm.LLM(
        folder,
        max_model_len=LONGEST + TOKENS,
        max_num_batched_tokens=96,  # fewer than most steps want, so that prompts are cut into chunks
        tensor_parallel_size=RANKS,
        distributed_executor_backend="external_launcher",
        skip_tokenizer_init=True,
        enable_prefix_caching=True,
        block_size=32,  # the prefix cache keeps whole blocks, and vLLM's default for CPUs is 128 tokens
        disable_log_stats=False,  # they count the tokens that the prefix cache had
        seed=0,
        **MODES[mode],
    )


def measured(llm: Any, forwards: Forwards, all_reduce: str) -> dict[str, Any]:
    import torch
    import vllm

    given = prompts(llm.llm_engine.model_config.get_vocab_size())
    sampling = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=1)

    def outputs(some: list[list[int]]) -> list[dict[str, Any]]:
        texts = [{"prompt_token_ids": prompt} for prompt in some]
        results = [each.outputs[0] for each in llm.generate(texts, sampling, use_tqdm=False)]
        return [
            {
                "tokens": list(result.token_ids),
                "logprobs": [
                    step[token].logprob for step, token in zip(result.logprobs, result.token_ids, strict=True)
                ],
            }
            for result in results
        ]

    forwards.seen = 0
    # Compiled code calls the communicator's op without its Python method, so the profiler counts the calls of the op.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        together = outputs(given)
    reduced = sum(event.count for event in profile.key_averages() if event.key == all_reduce)
    seen = {"all_reduce": reduced, "forward": forwards.seen}
    counters = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    alone = [outputs([given[place]])[0] for place in ALONE]
    mode = llm.llm_engine.vllm_config.compilation_config.mode
    return {
        "together": together,
        "alone": alone,
        "seen": seen,
        "cached": counters["vllm:prefix_cache_hits"],
        "compiled": int(mode) > 0,
    }


def end(llm: Any) -> None:
    """vLLM keeps its process groups when an engine ends, and a second engine would wait for the first one's."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
