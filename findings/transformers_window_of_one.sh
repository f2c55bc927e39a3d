#!/usr/bin/env bash
# transformers 5.24.0: with `sliding_window: 1`, generation with the default cache attends to all earlier tokens.
#
# Behaviour: a window of w tokens includes the current one, so DynamicCache keeps the last w - 1 keys, as the slice
# `keys[:, :, -w + 1 :]`. For w = 1 that is `keys[:, :, 0:]`, which keeps all of them, and no mask hides them from
# the next token. The logits of a forward pass over the whole text, and those with StaticCache, are right.
#
# Why one would guess otherwise: 1 is the smallest window, and the config accepts it; the window of 2 is exact; and a
# model without a cache gives other tokens than the same model with one, without a warning.
#
# What to do instead: let layers whose tokens attend only to themselves use their own value as the output of attention,
# or generate with cache_implementation="static".
#
# Output seen:
#   window 1: the last logits with DynamicCache differ from those without a cache by 0.1403, with StaticCache by 0.0000
#   window 2: the last logits with DynamicCache differ from those without a cache by 0.0000, with StaticCache by 0.0000
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "transformers==5.24.0" "torch==2.13.0" "numpy==1.26.4"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import sys

import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, StaticCache

SIZES = dict(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


def difference(model, cache, tokens):
    """Of the last logits, between one pass without a cache and token after token with one."""
    want = model(tokens, use_cache=False).logits[:, -1]
    for position in range(tokens.shape[1]):
        got = model(tokens[:, position : position + 1], cache=cache, use_cache=True).logits[:, -1]
    return (got - want).abs().max().item()


found = {}
with torch.no_grad():
    for window in (1, 2):
        torch.manual_seed(0)
        config = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=window)
        model, tokens = MistralForCausalLM(config).eval(), torch.arange(10)[None]
        found[window] = [
            difference(model, cache, tokens)
            for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=16))
        ]
        dynamic, static = found[window]
        print(
            f"window {window}: the last logits with DynamicCache differ from those without a cache by {dynamic:.4f}, "
            f"with StaticCache by {static:.4f}"
        )
as_stated = found[1][0] > 1e-3 and max(found[1][1], *found[2]) < 1e-4
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
