"""ONNX Runtime GenAI: its generator of a batch, on weights in 4 or 8 bits that its own model builder quantises.

Products round activations to 8 bits (the builder's default for processors, accuracy level 4). Everything else is in
float32, the KV cache too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime_genai as genai
from side import Prompts, group_size, main, nats_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def convert(source: Path, target: Path, bits: str) -> None:
    """A Llama in Hugging Face's format to ONNX, with an output head in 8 bits.

    bits: 8 or 4, in symmetric groups of 128 (64 where 128 does not divide).
    """
    from onnxruntime_genai.models import builder

    precision, options = f"int{bits}", [f"block_size={group_size(source)}", "prune_lm_head=true"]
    if bits == "4":
        options.append("matmul_mixed_precision=last_matmul:int8")
    with TemporaryDirectory() as folder, TemporaryDirectory() as cache:
        (Path(folder) / "model.safetensors").symlink_to((source / "model.safetensors").resolve())
        config = json.loads((source / "config.json").read_text()) | {"bos_token_id": 0, "eos_token_id": 0}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        _made_up_words(config["vocab_size"]).save_pretrained(folder)
        extra = builder.parse_extra_options(None, folder, str(target), precision, "cpu", cache, options)
        builder.create_model(None, folder, str(target), precision, "cpu", cache, **extra)


def _made_up_words(count: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer, which the builder needs and nobody else."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({f"w{token}": token for token in range(count)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token="w0", eos_token="w0")


class OnnxGenai:
    version = genai.__version__

    def __init__(self, folder: str, threads: int) -> None:
        config = genai.Config(folder)
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = genai.Model(config)

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        params, length = genai.GeneratorParams(self._model), len(prompts[0])
        params.set_search_options(
            batch_size=len(prompts), max_length=length + tokens, min_length=length + tokens, do_sample=False
        )
        generator = genai.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(tokens):
            generator.generate_next_token()
            stamp()
        return [generator.get_sequence(row)[length:].tolist() for row in range(len(prompts))]

    def nats(self, windows: Prompts) -> list[float]:
        """Token by token, because the model has no logits of a prompt's other tokens."""
        found = []
        for window in windows:
            params = genai.GeneratorParams(self._model)
            params.set_search_options(batch_size=1, max_length=len(window), do_sample=False)
            generator, rows = genai.Generator(self._model, params), []
            for token in window[:-1]:
                generator.append_tokens(np.array([[token]], np.int32))
                rows.append(generator.get_logits().reshape(-1))
            found.append(nats_of(np.stack(rows), window[1:]))
        return found


if __name__ == "__main__":
    main(convert, OnnxGenai)
