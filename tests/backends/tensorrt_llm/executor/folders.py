"""Engine directories in the shape that trtllm-build gives them; the engines themselves are empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.configs import SMALL
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.model.config import ModelConfig

MODEL = SMALL.replace(vocab_size=51, max_position_embeddings=64, num_layers=4)
WINDOWED = MODEL.replace(attention_pattern=("sliding", "global_nope"), window=9)
PLUGINS = {
    "context_fmha": True,
    "remove_input_padding": True,
    "use_paged_context_fmha": True,
    "gpt_attention_plugin": "auto",
    "tokens_per_block": 32,
}


def engine_folder(
    folder: Path, *, ranks: int = 1, model: ModelConfig = MODEL, version: str = "1.2.1", **plugins: Any
) -> Path:
    checkpoint = CheckpointManifest(model=model, ranks=ranks, dtype="bfloat16")
    build = {
        "max_batch_size": 4,
        "max_input_len": 48,
        "max_seq_len": 64,
        "max_num_tokens": 64,
        "plugin_config": PLUGINS | plugins,
    }
    folder.mkdir(parents=True)
    config = {"version": version, "pretrained_config": checkpoint.to_json(), "build_config": build}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").write_bytes(b"")
    return folder
