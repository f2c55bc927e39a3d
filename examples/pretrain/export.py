"""Export a training run as a MODEL_DIR: config, bfloat16 weights, tokenizer, generation defaults, held-out file names.

    python examples/pretrain/export.py RUN --data DATA -o pretrained/stdlib-pt

The config is that of the run's log. The weights are those of its last state, even if the run is not complete.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from data import END
from safetensors.torch import save_file
from state import whole_weights
from torch import Tensor

from trtllm_pt.checkpoint.model_dir import write_config
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig

GENERATION = {"eos_token_id": 0, "do_sample": True, "temperature": 0.7, "top_k": 40, "max_new_tokens": 128}


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def last_weights(run: Path) -> tuple[ModelConfig, dict[str, Tensor], int]:
    """Return a run's config, and the weights of its last state with its step. Raises UsageError if it has none."""
    log = run / "log.jsonl"
    if not log.exists():
        raise UsageError(f"{run} is not the folder of a training run: it has no log.jsonl")
    config = ModelConfig.from_json(json.loads(log.read_text().splitlines()[0])["model"])
    return config, *whole_weights(run, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        config, whole, step = last_weights(args.run)
    except UsageError as error:
        sys.exit(f"export.py: {error}")
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in whole.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    write_config(config, args.out, "bfloat16")
    shutil.copy(args.data / "tokenizer.json", args.out)
    write_json(
        args.out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "model_input_names": ["input_ids", "attention_mask"],
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
        },
    )
    write_json(args.out / "generation_config.json", GENERATION)
    held_out = json.loads((args.data / "files.json").read_text())["heldout"]["files"]
    (args.out / "heldout.txt").write_text("".join(f"{name}\n" for name in held_out))
    print(f"{args.out}: {sum(w.numel() for w in weights.values()):,} parameters after {step} steps")


if __name__ == "__main__":
    main()
