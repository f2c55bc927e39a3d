"""transformers: its Llama in eager PyTorch, without `generate`, whose own work per token it is better off without.

`dynamic` is its default cache; `static` the one of fixed size that its documentation advises for speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from side import Prompts, main
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, StaticCache


def convert(source: Path, target: Path) -> None:
    """Sizes, as trtllm_pt's config.json has them, to a model with random weights."""
    c = json.loads(source.read_text())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        num_hidden_layers=c["num_layers"],
        num_attention_heads=c["num_heads"],
        num_key_value_heads=c["num_kv_heads"],
        head_dim=c["head_size"],
        max_position_embeddings=c["max_position_embeddings"],
        rms_norm_eps=c["norm_eps"],
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)


class HuggingFace:
    version = transformers.__version__

    def __init__(self, folder: str, threads: int, cache: str) -> None:
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).requires_grad_(False)
        self._static = cache == "static"
        self._caches: dict[tuple[int, int], StaticCache] = {}

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        ids, past = torch.tensor(prompts), 0
        cache = self._cache(len(prompts), ids.shape[1] + tokens)
        found = []
        for _ in range(tokens):
            positions = torch.arange(past, past + ids.shape[1])[None]
            out = self._model(ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, past = out.past_key_values, past + ids.shape[1]
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(ids)
            stamp()
        rows: list[list[int]] = torch.cat(found, 1).tolist()
        return rows

    def _cache(self, batch: int, length: int) -> StaticCache | None:
        if not self._static:
            return None
        if (batch, length) not in self._caches:
            self._caches[batch, length] = StaticCache(config=self._model.config, max_cache_len=length)
        self._caches[batch, length].reset()
        return self._caches[batch, length]


if __name__ == "__main__":
    main(convert, HuggingFace)
