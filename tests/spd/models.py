"""A small dense model with a tokenizer, and a text for it."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tests.checkpoint.models import random_model
from tests.configs import SMALL
from trtllm_pt.checkpoint.load import save_model
from trtllm_pt.model.config import ModelConfig

DENSE = SMALL.replace(
    tracks=1, schedule="tp", block_depth=None, num_heads=8, num_kv_heads=4, qkv_bias=True, output_bias=True
)


def save_dense(folder: Path, config: ModelConfig = DENSE) -> Path:
    save_model(random_model(config), folder)
    tokenizer = Tokenizer(WordLevel({str(token): token for token in range(config.vocab_size)}, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    return folder


def save_text(file: Path, tokens: int, seed: int = 0) -> Path:
    """A text of so many tokens."""
    drawn = random.Random(seed)
    file.write_text(" ".join(str(drawn.randrange(101)) for _ in range(tokens)))
    return file
