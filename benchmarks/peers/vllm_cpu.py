"""vLLM on processors, with its engine in this process and compiled as it compiles by default."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ |= {  # read when vLLM is imported
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
import torch
import vllm
from safetensors.torch import load_file, save_file
from side import Prompts, group_size, main
from torch import Tensor

_MOST_SEQUENCES, _STEP_TOKENS, _POSITIONS = 16, 2048, 1024


def convert(source: Path, target: Path, bits: str) -> None:
    """A Llama in bfloat16 to the forms that vLLM runs on processors, as compressed-tensors has them.

    bits: 8, which rounds each token's activations to int8, too (vLLM has no other product in int8 there), or 4, in
    groups of 128 (64 where 128 does not divide).
    """
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    weights = {"num_bits": int(bits), "type": "int", "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    if bits == "4":
        weights |= {"strategy": "group", "group_size": group_size(source)}
        activations = None
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == "8" else "pack-quantized",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
    tensors: dict[str, Tensor] = {}
    group = group_size(source) if bits == "4" else 0
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj." in name:
            tensors |= _quantized(name.removesuffix(".weight"), tensor, int(bits), group)
        else:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "generation_config.json", target)


def _quantized(name: str, weight: Tensor, bits: int, group: int) -> dict[str, Tensor]:
    """Return the tensors of a matrix that is rounded to the nearest step, in groups of inputs or (0) whole."""
    most = (1 << (bits - 1)) - 1
    grouped = weight.float().unflatten(1, (-1, group or weight.shape[1]))
    scales = (grouped.abs().amax(-1, keepdim=True) / most).bfloat16()
    values = (grouped / scales.float()).round().clamp(-most - 1, most).flatten(1).to(torch.int32)
    scale = {f"{name}.weight_scale": scales[..., 0].contiguous()}
    if bits == 8:
        return scale | {f"{name}.weight": values.to(torch.int8)}
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    words = ((values + most + 1).unflatten(1, (-1, len(shifts))) << shifts).sum(-1, dtype=torch.int32)
    return scale | {f"{name}.weight_packed": words, f"{name}.weight_shape": torch.tensor(weight.shape)}


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

    def nats(self, windows: Prompts) -> list[float]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        found = []
        for number, window in enumerate(windows):
            self._engine.add_request(f"window {number}", {"prompt_token_ids": list(window)}, sampling)
            while self._engine.has_unfinished_requests():
                outputs = self._engine.step()
            scores = outputs[-1].prompt_logprobs
            found.append(-sum(scores[place][token].logprob for place, token in enumerate(window) if place))
        return found


if __name__ == "__main__":
    main(convert, Vllm)
