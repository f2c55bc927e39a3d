#!/usr/bin/env bash
# jinja2 3.1.6 beside transformers 5.24.0: the same chat template gives another prompt, because of the filter `tojson`.
#
# Behaviour: Jinja's own `tojson` escapes <, >, & and ' as \u003c and so on, for use inside HTML, and sorts the keys.
# transformers replaces the filter: nothing is escaped, and keys keep their order. Chat templates are written for, and
# models trained with, the latter. transformers also sets trim_blocks and lstrip_blocks, without which the text has
# other line breaks.
#
# Why one would guess otherwise: chat templates are Jinja templates, published as such, and nearly all of them give the
# right text with a bare `jinja2.Environment`. The filter is built in, so nothing is reported as missing; only where a
# template writes tools or arguments with `tojson`, as most do that know tools, do the tokens differ.
#
# What to do instead: give the environment a `tojson` of its own, `lambda value, indent=None: json.dumps(value,
# ensure_ascii=False, indent=indent)`, with trim_blocks and lstrip_blocks.
#
# Output seen:
#   transformers: {"type": "function", "about": "Is a < b & c?"}|user: hi
#   jinja2:       {"about": "Is a \u003c b \u0026 c?", "type": "function"}|user: hi
#   jinja2 with a tojson of its own: as transformers
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "transformers==5.24.0" "jinja2==3.1.6" "numpy==1.26.4"

"$work/venv/bin/python" - <<'EOF_PYTHON'
import json
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATE = """{% if tools %}
    {{- tools[0] | tojson }}|
{%- endif %}
{% for message in messages %}
    {{- message.role }}: {{ message.content }}
{%- endfor %}"""
messages = [{"role": "user", "content": "hi"}]
tools = [{"type": "function", "about": "Is a < b & c?"}]


def plain(**filters):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    return environment.from_string(TEMPLATE).render(messages=messages, tools=tools)


theirs = render_jinja_template([messages], tools=tools, chat_template=TEMPLATE)[0][0]
bare = plain()
replaced = plain(tojson=lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent))
print(f"transformers: {theirs}")
print(f"jinja2:       {bare}")
print(f"jinja2 with a tojson of its own: {'as transformers' if replaced == theirs else replaced}")
as_stated = (
    theirs == '{"type": "function", "about": "Is a < b & c?"}|user: hi'
    and bare == '{"about": "Is a \\u003c b \\u0026 c?", "type": "function"}|user: hi'
    and replaced == theirs
)
sys.exit(0 if as_stated else "this is not the behaviour described at the head of this script")
EOF_PYTHON
