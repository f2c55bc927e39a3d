"""A program that uses an engine of several ranks as its owner does, for test_processes.py. It prints JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.backends.tensorrt.requests import PROMPT, workload
from trtllm_pt.errors import RunError
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM


def outputs(llm: LLM) -> dict[str, Any]:
    """What a batch, one of it alone, streams, a cancellation and a second question give."""
    requests = workload(8, llm.manifest.model.vocab_size)
    batch = llm.generate([prompt for prompt, _ in requests], [sampling for _, sampling in requests])
    [alone] = llm.generate([requests[3][0]], requests[3][1])
    *pieces, last = llm.stream(PROMPT, SamplingParams(max_tokens=8))
    cancelled = llm.stream(PROMPT, SamplingParams(max_tokens=100, end_id=-1))
    next(cancelled)
    cancelled.close()
    scored = SamplingParams(max_tokens=2, end_id=-1, prompt_log_probs=True, top_log_probs=2)
    [scores] = llm.generate([requests[0][0] + tuple(range(1, 60))], scored)
    return {
        "batch": [result.token_ids for result in batch],
        "alone": alone.token_ids == batch[3].token_ids,
        "text": last.text,  # type: ignore[union-attr]
        "streamed": "".join(map(str, pieces)) == last.text,  # type: ignore[union-attr]
        "scores": [round(score.log_prob, 3) for score in scores.prompt_scores],
    }


def main(folder: Path, victim: int) -> None:
    with LLM(folder) as llm:
        found = outputs(llm)
        stats = llm._runtime.stats()
        found["hops"], found["steps"] = stats.hops_per_step, stats.steps
        os.kill(llm._runtime.pids[victim], signal.SIGKILL)  # type: ignore[attr-defined]
        try:
            while True:
                llm.generate([[1]] * 4, SamplingParams(max_tokens=50, end_id=-1))
        except RunError as error:
            found["error"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
