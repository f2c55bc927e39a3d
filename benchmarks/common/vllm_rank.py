"""One rank of benchmarks/vllm_compare.py: python -m common.vllm_rank RANK JOB.json.

All contenders' engines live in the same processes, one per rank (vLLM's "external launcher"), and take turns. The first
rank prints a line of JSON for each sample.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.files.cache import cache_dir

_CPU_CACHE_BYTES = 2**28  # of keys and values, for each engine of a rank


@dataclass(frozen=True, slots=True)
class Job:
    """What all ranks run. `models` are folders with a config.json; their weights are random."""

    models: dict[str, str]
    ranks: int
    cases: list[list[int]]  # batch size, input length and output length
    rounds: int
    dtype: str
    addresses: list[str]  # of the ranks
    port: int
    interface: str | None  # the network interface between the ranks; None for one machine
    on_cpu: bool
    sums: bool  # whether the ranks all-reduce
    processor_time: bool  # of this process, with one thread, instead of the time that passes


def settle(rank: int, job: Job) -> None:
    """Set what vLLM reads when it is imported, and on a CPU give the rank cores of its own.

    vLLM itself binds only processes that it has started.
    """
    if job.processor_time:
        os.environ["OMP_NUM_THREADS"] = "1"
    elif job.on_cpu:
        cores = sorted(os.sched_getaffinity(0))
        own = cores[rank :: job.ranks] or cores
        os.sched_setaffinity(0, own)
        os.environ["OMP_NUM_THREADS"] = str(len(own))
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache_dir() / "vllm"),
        "VLLM_DISABLE_COMPILE_CACHE": "1",  # which is for one model; torch's own cache serves all contenders
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_HOST_IP": job.addresses[rank],
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "MASTER_ADDR": job.addresses[0],
        "MASTER_PORT": str(job.port),
        "RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(job.ranks),
    }
    if job.interface:
        os.environ["GLOO_SOCKET_IFNAME"] = job.interface


def apart() -> None:
    """Let vLLM see that the ranks share no memory, as on several machines, so that it uses gloo over TCP."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"rank-{communicator.rank}")


def leave_out_all_reduces() -> None:
    """Let each rank keep its own part of every sum. Logits are still gathered, so that ranks draw the same tokens."""
    from vllm.distributed.parallel_state import GroupCoordinator

    GroupCoordinator.all_reduce = lambda _, part: part


def engines(job: Job) -> dict[str, Any]:
    import vllm

    most = max(batch for batch, _, _ in job.cases)
    longest = max(before + after for _, before, after in job.cases)
    options = {
        "dtype": job.dtype,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": longest + 1,
        "max_num_seqs": most,
        "enable_prefix_caching": False,
        "tensor_parallel_size": job.ranks,
        "distributed_executor_backend": "external_launcher",
        "seed": 0,
    }
    if job.on_cpu:
        options["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    else:
        options["gpu_memory_utilization"] = 0.9 / len(job.models)
    return {name: vllm.LLM(folder, **options) for name, folder in job.models.items()}


def sample(llm: Any, name: str, prompts: list[list[int]], tokens: int, clock: Callable[[], float]) -> dict[str, float]:
    """Generate for all prompts at once. TTFT ends when every prompt has its first token."""
    import vllm

    engine = llm.llm_engine
    sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    begun = clock()
    for number, prompt in enumerate(prompts):
        engine.add_request(f"{name}-{begun}-{number}", {"prompt_token_ids": prompt}, sampling)
    lengths: dict[str, int] = {}
    first = 0.0
    while engine.has_unfinished_requests():
        for output in engine.step():
            lengths[output.request_id] = len(output.outputs[0].token_ids)
        if not first and len(lengths) == len(prompts):
            first = clock()
    done = clock()
    return {
        "ttft": first - begun,
        "tpot": (done - first) / max(tokens - 1, 1),
        "throughput": len(prompts) * tokens / (done - begun),
    }


def main() -> None:
    rank, job = int(sys.argv[1]), Job(**json.loads(Path(sys.argv[2]).read_text()))
    settle(rank, job)
    if job.interface:
        apart()
    if not job.sums:
        leave_out_all_reduces()
    loaded = engines(job)
    draw, clock = random.Random(0), time.process_time if job.processor_time else time.perf_counter
    for number in range(job.rounds + 1):  # the first round is a warm-up
        for batch, before, after in job.cases:
            names = list(loaded)
            for name in [*names[number % len(names) :], *names[: number % len(names)]]:
                vocabulary = loaded[name].llm_engine.model_config.get_vocab_size()
                prompts = [[draw.randrange(vocabulary) for _ in range(before)] for _ in range(batch)]
                taken = sample(loaded[name], name, prompts, after, clock)
                if rank == 0 and number:
                    print(
                        json.dumps({"name": name, "case": [batch, before, after], "round": number} | taken), flush=True
                    )


if __name__ == "__main__":
    main()
