#!/usr/bin/env bash
# tamm 0.2.0 beside transformers 5.24.0 (torch 2.13.0): a sliding window of 4 is 5 keys in one and 4 in the other.
#
# Behaviour: with `sliding_window=4`, a query of transformers' Mistral sees its own key and the 3 before it. With
# `local_attention_window_size=4`, a query of Apple's tamm sees its own key and the 4 before it.
#
# Why one would guess otherwise: both numbers are called the size of the window, both implementations are those of the
# models' authors or their usual home, and for prompts no longer than the window the number changes nothing. A converter
# that copies the number passes every short test; long texts are then computed with one key too many or too few at each
# local layer, which no shape check sees and which shows as slightly worse text.
#
# What to do instead: add 1 when a tamm model goes to an engine that counts the current token, subtract 1 the other way,
# and test with a prompt that is longer than the window.
#
# Output seen:
#   tamm, window 4: the last position sees the tokens at distances [0, 1, 2, 3, 4]
#   transformers, window 4: the last position sees the tokens at distances [0, 1, 2, 3]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torch==2.13.0" "transformers==5.24.0" "tamm==0.2.0" "numpy==1.26.4"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import sys

import torch
from tamm.models.afm_text.afm_pt_moe import AFMParallelTrackMoEConfig
from transformers import MistralConfig, MistralForCausalLM

WINDOW = 4
TOKENS = list(range(10, 22))


def apple():
    """One layer of tamm's Parallel Track model."""
    config = AFMParallelTrackMoEConfig(
        vocab_size=64,
        num_tracks=2,
        num_layers_per_track=1,
        num_layers_per_track_per_sync_point=1,
        hidden_dim=32,
        attention_hidden_dim=32,
        dense_feed_forward_hidden_dim=64,
        num_heads=2,
        attention_layer_pattern=("local_rope",),
        local_attention_window_size=WINDOW,
        feed_forward_layer_pattern=("dense",),
    )
    model = config.create_module()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def mistral():
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=1, sliding_window=WINDOW))


@torch.no_grad()
def distances(model):
    """How far back a changed token changes the logits of the last position."""

    def last(tokens):
        return model(torch.tensor([tokens])).logits[0, -1]

    changed = ([*TOKENS[:place], 50, *TOKENS[place + 1 :]] for place in range(len(TOKENS)))
    before = last(TOKENS)
    nearest_first = enumerate(reversed(list(changed)))
    return [distance for distance, tokens in nearest_first if not torch.equal(last(tokens), before)]


torch.manual_seed(0)
seen = {"tamm": distances(apple().eval()), "transformers": distances(mistral().eval())}
for name, found in seen.items():
    print(f"{name}, window {WINDOW}: the last position sees the tokens at distances {found}")
as_stated = seen == {"tamm": [0, 1, 2, 3, 4], "transformers": [0, 1, 2, 3]}
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
