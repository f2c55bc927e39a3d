#!/usr/bin/env bash
# xgrammar 0.2.9 beside jsonschema 4.26.0: `pattern` must match the whole string, and `not` and `uniqueItems` are dropped.
#
# Behaviour: with its default options, xgrammar compiles these schemas without a warning. `"pattern": "^a"` becomes a
# grammar that forbids "ab", which the schema allows. `not` and `uniqueItems` have no effect at all, so that what the
# schema forbids is allowed. jsonschema, a validator, is shown beside it.
#
# Why one would guess otherwise: JSON Schema's patterns are not anchored, and a keyword that cannot be enforced is
# expected to be refused, because the caller relies on the output being valid.
#
# What to do instead: validate every output, or use a library that refuses what it does not support (llguidance does).
#
# Output seen (allowed by xgrammar / by the schema):
#   pattern "^a", "ab": no / yes
#   not 3, 3: yes / no
#   uniqueItems, [1, 1]: yes / no
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "xgrammar==0.2.9" "jsonschema==4.26.0" "numpy==1.26.4"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import json
import sys

import xgrammar
from jsonschema import Draft202012Validator

END = 256  # the other tokens are the 256 bytes
vocabulary = [bytes([byte]) for byte in range(END)] + [b"</s>"]
tokenizer = xgrammar.TokenizerInfo(vocabulary, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[END])
compiler = xgrammar.GrammarCompiler(tokenizer)


def allows(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(END)


CASES = {
    'pattern "^a"': ({"type": "string", "pattern": "^a"}, '"ab"'),
    "not 3": ({"type": "integer", "not": {"const": 3}}, "3"),
    "uniqueItems": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 1]"),
}
found = []
for name, (schema, text) in CASES.items():
    ours, schemas = allows(schema, text), Draft202012Validator(schema).is_valid(json.loads(text))
    print(f"{name}, {text}: {'yes' if ours else 'no'} / {'yes' if schemas else 'no'}")
    found.append((ours, schemas))
as_stated = found == [(False, True), (True, False), (True, False)]
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
