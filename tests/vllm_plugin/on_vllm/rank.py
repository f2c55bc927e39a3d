"""One rank of vLLM that runs several models one after another: python -m … RANK RANKS FOLDER.

FOLDER/plan.json is a list of [model, folder, "eager" or "compiled"]. Rank 0 writes FOLDER/MODEL.MODE.json for each. The
ranks are started by the test (vLLM's "external launcher"), because importing vLLM takes longer than any of the models.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.vllm_plugin.on_vllm.models import ALONE, LONGEST, TOKENS, prompts

RANK, RANKS, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
BINDING = {1: "0-1", 2: "0|1", 4: "0|1|0|1"}
os.environ |= {  # read when vLLM is imported
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": BINDING[RANKS],
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
    import vllm

    forwards, mapped = Forwards(), Mapped()
    for name, folder, mode in json.loads((FOLDER / "plan.json").read_text()):
        llm = vllm.LLM(
            folder,
            dtype="float32",
            max_model_len=LONGEST + TOKENS,
            max_num_batched_tokens=96,  # fewer than most steps want, so that prompts are cut into chunks
            tensor_parallel_size=RANKS,
            distributed_executor_backend="external_launcher",
            enforce_eager=mode == "eager",
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            seed=0,
        )
        result = measured(llm, forwards) | {"mapped": mapped.most}
        if RANK == 0:
            (FOLDER / f"{name}.{mode}.json").write_text(json.dumps(result))
        end(llm)
        del llm


def measured(llm: Any, forwards: Forwards) -> dict[str, Any]:
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
    reduced = sum(event.count for event in profile.key_averages() if event.key == "_C::shm_allreduce")
    seen = {"all_reduce": reduced, "forward": forwards.seen}
    alone = [outputs([given[place]])[0] for place in ALONE]
    mode = llm.llm_engine.vllm_config.compilation_config.mode
    return {"together": together, "alone": alone, "seen": seen, "compiled": int(mode) > 0}


def end(llm: Any) -> None:
    """vLLM keeps its process groups when an engine ends, and a second engine would wait for the first one's."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
