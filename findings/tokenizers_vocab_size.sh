#!/usr/bin/env bash
# tokenizers 0.23.3: get_vocab_size() can be smaller than the largest token id, and decode() skips ids nobody has.
#
# Behaviour: `get_vocab_size()` counts the entries of the vocabulary. Where the ids have gaps, as after a token was
# deleted from tokenizer.json, the largest id lies beyond the count. `decode` gives no error and no placeholder for an
# id that has no entry: it leaves it out of the text.
#
# Why one would guess otherwise: the name promises the size that an array indexed by token needs, and for most models it
# is that size, so an embedding, a bitmap of allowed tokens or a check "id < get_vocab_size()" works until the first
# model with a gap. And looking up an index that does not exist raises nearly everywhere else in Python, so an id from
# the padding of the output layer (a bug in sampling) is expected to be loud, not to vanish.
#
# What to do instead: size arrays by `max(tokenizer.get_vocab().values()) + 1` or by the model's own vocab_size, and
# check ids with `id_to_token(id) is None` where a token that does not exist would be a bug.
#
# Output seen:
#   get_vocab_size(): 4, largest id: 9
#   encode('red fox'): [0, 9]
#   decode([0, 7, 5000, 9]): 'red fox'
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --no-deps "tokenizers==0.23.3"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers

tokenizer = Tokenizer(models.WordLevel({"red": 0, "blue": 1, "<unk>": 2, "fox": 9}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
size, largest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values())
encoded = tokenizer.encode("red fox").ids
decoded = tokenizer.decode([0, 7, 5000, 9])
print(f"get_vocab_size(): {size}, largest id: {largest}")
print(f"encode('red fox'): {encoded}")
print(f"decode([0, 7, 5000, 9]): {decoded!r}")
as_stated = (size, largest, encoded, decoded) == (4, 9, [0, 9], "red fox")
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
