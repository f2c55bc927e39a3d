"""Copy the tokenizer's files from a model to a checkpoint or an engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trtllm_pt.files.atomic import write_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from the folder `source` to the folder `target`, which is created if there are any.

    Older models name their end token only in config.json; its token ids are then written to generation_config.json.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).exists()]
    if found:
        target.mkdir(exist_ok=True)
    for path in found:
        shutil.copyfile(path, target / path.name)
    if found and not (target / "generation_config.json").exists() and (source / "config.json").exists():
        config = json.loads((source / "config.json").read_text())
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        tokens = {key: config[key] for key in keys if config.get(key) is not None}
        if tokens:
            write_json(target / "generation_config.json", tokens)
