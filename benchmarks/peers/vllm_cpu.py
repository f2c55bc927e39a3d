"""vLLM on processors, with its engine in this process and compiled as it compiles by default."""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ |= {  # read when vLLM is imported
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
import vllm
from side import Prompts, main

_MOST_SEQUENCES, _STEP_TOKENS, _POSITIONS = 16, 2048, 1024


class Vllm:
    version = vllm.__version__

    def __init__(self, folder: str, threads: int) -> None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        llm = vllm.LLM(
            folder,
            dtype="bfloat16",
            max_model_len=_POSITIONS,
            max_num_seqs=_MOST_SEQUENCES,
            max_num_batched_tokens=_STEP_TOKENS,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )
        self._engine = llm.llm_engine
        self._requests = 0

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
        )
        names = [str(self._requests + number) for number in range(len(prompts))]
        self._requests += len(prompts)
        for name, prompt in zip(names, prompts, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, sampling)
        found: dict[str, list[int]] = {name: [] for name in names}
        complete = 0
        while complete < tokens:
            for output in self._engine.step():
                found[output.request_id] = list(output.outputs[0].token_ids)
            while complete < min(map(len, found.values())):
                complete += 1
                stamp()
        return list(found.values())


if __name__ == "__main__":
    main(None, Vllm)
