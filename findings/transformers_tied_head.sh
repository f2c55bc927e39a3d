#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.13.0: tie_word_embeddings=true in config.json does not always tie.
#
# Behaviour: if the checkpoint has both `model.embed_tokens.weight` and `lm_head.weight`, and they differ, the output
# layer keeps its own weights in spite of `"tie_word_embeddings": true`. There is a warning in the log; the config of
# the loaded model still says true.
#
# Why one would guess otherwise: the key says what the architecture is, and transformers 4 let it win: the head became
# the embedding and the file's `lm_head.weight` was dropped. Other loaders still read it so: they skip `lm_head.weight`
# when the config says tied. The same directory is then two different models, and both run without an error. Such files
# arise where a fine-tuning or a quantisation changed the head of a tied model and copied the config.
#
# What to do instead: when `tie_word_embeddings` is true and the file has an `lm_head.weight`, compare it with the
# embedding, and refuse the checkpoint or follow transformers 5 if they differ.
#
# Output seen:
#   config.json of the loaded model: tie_word_embeddings is True
#   file without lm_head.weight: the head is the embedding
#   file with an equal lm_head.weight: the head is the embedding
#   file with another lm_head.weight: the head is the file's own
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    "torch==2.13.0" "transformers==5.24.0" "safetensors==0.8.0" "numpy==1.26.4"

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work/model" <<'EOF_PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder = sys.argv[1]
file = f"{folder}/model.safetensors"
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=True,
)
LlamaForCausalLM(config).save_pretrained(folder)
weights = load_file(file)
embedding, other = weights["model.embed_tokens.weight"], torch.ones(64, 32)
seen = []
for label, head in (("without", None), ("with an equal", embedding.clone()), ("with another", other)):
    save_file(weights | ({} if head is None else {"lm_head.weight": head}), file, metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder)
    if not seen:
        print(f"config.json of the loaded model: tie_word_embeddings is {model.config.tie_word_embeddings}")
    found = model.lm_head.weight
    whose = "embedding" if torch.equal(found, embedding) else "file's own" if torch.equal(found, other) else "neither"
    print(f"file {label} lm_head.weight: the head is the {whose}")
    seen.append((model.config.tie_word_embeddings, whose))
as_stated = seen == [(True, "embedding"), (True, "embedding"), (True, "file's own")]
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
