#!/usr/bin/env bash
# llguidance 1.9.1: `oneOf` of two references is refused, and accepted as soon as an unknown keyword stands beside it.
#
# Behaviour: a schema whose `oneOf` lists two `$ref`s to objects that cannot both match, told apart by a `const`, is
# refused with "oneOf constraints are not supported". With the same two objects written in place it is accepted, and so
# is the one with references if any unknown keyword, such as `x-any`, is added to the schema. A `title` does not help.
#
# Why one would guess otherwise: by JSON Schema, a reference stands for its target, and an unknown keyword means nothing.
# Schemas that pydantic makes of tagged unions have exactly this form.
#
# What to do instead: before the schema is translated, add an unknown keyword to every part that has `oneOf`.
#
# Output seen:
#   written in place: accepted
#   by reference: oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf
#   by reference, with a title: oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf
#   by reference, with x-any: accepted
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "llguidance==1.9.1"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import json
import sys

from llguidance import LLMatcher


def tagged(kind):
    properties = {"kind": {"const": kind}}
    return {"type": "object", "properties": properties, "required": ["kind"], "additionalProperties": False}


dog, cat = tagged("dog"), tagged("cat")
by_reference = {"$defs": {"dog": dog, "cat": cat}, "oneOf": [{"$ref": "#/$defs/dog"}, {"$ref": "#/$defs/cat"}]}
schemas = {
    "written in place": {"oneOf": [dog, cat]},
    "by reference": by_reference,
    "by reference, with a title": {**by_reference, "title": "pet"},
    "by reference, with x-any": {**by_reference, "x-any": True},
}
accepted = []
for name, schema in schemas.items():
    refused, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    print(f"{name}: {messages[0] if refused else 'accepted'}")
    accepted.append(not refused)
sys.exit(0 if accepted == [True, False, False, True] else "this is not the behaviour described at the head of this script")
EOF_PYTHON
