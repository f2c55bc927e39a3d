"""Two pairs, interleaved sample by sample so that the machine's noise hits both sides alike:

- dense-150m, the same random weights: this engine on one rank, against Hugging Face transformers, both 2 threads;
- dense-190m under tensor parallelism, against pt-190m (equal parameters, D = 4), both on 2 ranks of 1 thread.

Decoding one sequence reads every weight once per token, so its limit is memory bandwidth: the read stream measured
beside each sample says how near a step comes to it.

    python benchmarks/side_by_side.py [--rounds 9] [--tokens 33] [--prompt 512] [--json]

Models and engines are kept in build/benchmarks and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from trtllm_pt import LLM, BuildOptions, SamplingParams, build, convert, init, inspect
from trtllm_pt.presets import preset

FOLDER = Path("build/benchmarks")
DTYPE = torch.bfloat16
Sample = Callable[[list[int]], tuple[float, float]]  # a prompt -> seconds to its first token, seconds of a step


def hugging_face_model(name: str) -> Path:
    """A preset with random weights as a transformers Llama model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, c = FOLDER / f"{name}-hf", preset(name)
    if not folder.exists():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=c.vocab_size,
                hidden_size=c.hidden_size,
                intermediate_size=c.intermediate_size,
                num_hidden_layers=c.num_layers,
                num_attention_heads=c.num_heads,
                num_key_value_heads=c.num_kv_heads,
                head_dim=c.head_size,
                max_position_embeddings=c.max_position_embeddings,
                rms_norm_eps=c.norm_eps,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        model.to(DTYPE).save_pretrained(folder)
    return folder


def engine(name: str, ranks: int, source: Path | None = None) -> Path:
    checkpoint, folder = FOLDER / f"{name}-{ranks}.checkpoint", FOLDER / f"{name}-{ranks}.engine"
    if not checkpoint.exists():
        if source is None:
            init(preset(name), checkpoint, ranks=ranks)
        else:
            convert(source, checkpoint, ranks=ranks)
    if not folder.exists():
        build(checkpoint, folder, "embedded", BuildOptions(max_seq_len=1024))
    return folder


def ours(llm: LLM, tokens: int) -> Sample:
    def sample(prompt: list[int]) -> tuple[float, float]:
        [result] = llm.generate([prompt], SamplingParams(max_tokens=tokens, end_id=-1))
        return result.ttft_s, 1 / result.tokens_per_s

    return sample


def theirs(folder: Path, tokens: int) -> Sample:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE)

    class Clock:
        """Called by generate with the prompt, then with every token."""

        def __init__(self) -> None:
            self.times = [time.perf_counter()]

        def put(self, _: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def sample(prompt: list[int]) -> tuple[float, float]:
        clock, length = Clock(), {"max_new_tokens": tokens, "min_new_tokens": tokens}
        model.generate(torch.tensor([prompt]), **length, do_sample=False, pad_token_id=0, streamer=clock)
        began, _, first, *rest = clock.times
        return first - began, (rest[-1] - first) / len(rest)

    return sample


def read_stream(big: torch.Tensor) -> float:
    """GB/s of a sum over a buffer that no cache holds."""
    began = time.perf_counter()
    big.sum()
    return big.nbytes / (time.perf_counter() - began) / 1e9


def compare(
    title: str, names: tuple[str, str], sides: tuple[Sample, Sample], prompts: list[list[int]]
) -> dict[str, object]:
    """Alternates the sides; medians of both, and the median and range of the ratios pair by pair."""
    big = torch.ones(64 << 20)
    warm_up, *prompts = prompts
    for side in sides:
        side(warm_up)
    pairs, reads = [], []
    for number, prompt in enumerate(tqdm(prompts, desc=title)):  # each anew: a known prefix would not be computed
        order = (0, 1) if number % 2 == 0 else (1, 0)
        taken = {which: sides[which](prompt) for which in order}
        pairs.append((taken[0], taken[1]))
        reads.append(read_stream(big))
    report: dict[str, object] = {"title": title, "read_gb_s": statistics.median(reads), "rounds": len(prompts)}
    for index, what in enumerate(("ttft_s", "step_s")):
        for side, name in enumerate(names):
            report[f"{name} {what}"] = statistics.median(pair[side][index] for pair in pairs)
        ratios = [pair[1][index] / pair[0][index] for pair in pairs]
        report[f"ratio {what}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    shape = (args.rounds + 1, args.prompt)
    prompts = torch.randint(0, 16384, shape, generator=torch.Generator().manual_seed(0)).tolist()

    dense = hugging_face_model("dense-150m")
    with LLM(engine("dense-150m", 1, dense), threads=2) as llm:
        sides = ours(llm, args.tokens), theirs(dense, args.tokens)
        reports = [compare("dense-150m, 1 rank x 2 threads", ("trtllm_pt", "transformers"), sides, prompts)]
    folders = engine("pt-190m", 2), engine("dense-190m", 2)
    with LLM(folders[0], threads=1) as pt, LLM(folders[1], threads=1) as tp:
        sides = ours(pt, args.tokens), ours(tp, args.tokens)
        syncs = [inspect(folder)["sync_points"] for folder in folders]
        title = f"190M, 2 ranks x 1 thread, {syncs[0]} against {syncs[1]} syncs per forward"
        reports.append(compare(title, ("pt", "tp"), sides, prompts))
    for report in reports:
        print(
            json.dumps(report) if args.json else "\n".join(f"{key:28} {value}" for key, value in report.items()) + "\n"
        )


if __name__ == "__main__":
    main()
