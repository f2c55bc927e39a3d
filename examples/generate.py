"""Generate text from prompts with the Python API: `python examples/generate.py engines/demo-2`."""

import sys

from trtllm_pt import LLM, SamplingParams


def main(engine_dir: str) -> None:
    prompts = ["import os\n", "def binary_search(", "class Queue:"]
    with LLM(engine_dir) as llm:  # starts the engine's ranks, and stops them at the end of the block
        for prompt, result in zip(prompts, llm.generate(prompts, SamplingParams(max_tokens=24)), strict=True):
            print(f"{prompt!r} -> {result.text!r}")
            print(f"  {result.finish_reason}, {1e3 * result.ttft_s:.0f} ms to the first token")

        sampling = SamplingParams(max_tokens=32, temperature=0.7, top_p=0.9, seed=1)
        for piece in llm.stream("def main(", sampling):
            if isinstance(piece, str):
                print(piece, end="", flush=True)
            else:  # the last item is the result
                print(f"\n{len(piece.token_ids)} tokens, {piece.tokens_per_s:.0f} tokens/s")


if __name__ == "__main__":
    main(sys.argv[1])
