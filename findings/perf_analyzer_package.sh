#!/usr/bin/env bash
# perf-analyzer 0.1.0: the package of the name of Triton's load generator is empty; the program is in old tritonclients.
#
# Behaviour: `pip install perf-analyzer` installs a module of 32 bytes and no program. The wheel of tritonclient 2.51.0
# brings the program perf_analyzer, 20 MB of it, though its name and its description speak of a client library only. The
# wheel of tritonclient 2.61.0 has no program and asks for the empty package instead.
#
# Why one would guess otherwise: the package has the program's exact name, tritonclient depends on it, and upgrading a
# client library is not expected to take a program off PATH. A script that calls perf_analyzer, as genai-perf does, then
# ends with "command not found" in an environment where every requirement is satisfied.
#
# What to do instead: pin tritonclient 2.51.0 in the environment of the load tests, or take the program from NVIDIA's
# container of Triton's SDK.
#
# Output seen:
#   perf-analyzer 0.1.0: no program, 32 bytes of Python
#   tritonclient 2.51.0: has bin/perf_analyzer, does not ask for perf-analyzer
#   tritonclient 2.61.0: has no bin/perf_analyzer, asks for perf-analyzer
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
for package in "perf-analyzer==0.1.0" "tritonclient==2.51.0" "tritonclient==2.61.0"; do
    "$work/venv/bin/pip" install --quiet --no-compile --no-deps "$package"
    "$work/venv/bin/python" - "${package%%==*}" <<'EOF_PYTHON' | tee -a "$work/seen"
import sys
from importlib.metadata import distribution

package = distribution(sys.argv[1])
python = sum(file.size for file in package.files if file.suffix == ".py")
program = any(file.name == "perf_analyzer" and file.parent.name == "bin" for file in package.files)
if package.name == "tritonclient":
    asks = any(requirement.startswith("perf-analyzer") for requirement in package.requires or ())
    has = "has bin/perf_analyzer" if program else "has no bin/perf_analyzer"
    print(f"tritonclient {package.version}: {has}, {'asks' if asks else 'does not ask'} for perf-analyzer")
else:
    print(f"perf-analyzer {package.version}: {'a' if program else 'no'} program, {python} bytes of Python")
EOF_PYTHON
done
# The output that the head of this script states.
sed -n 's/^#   //p' "$0" > "$work/stated"
if ! cmp --quiet "$work/seen" "$work/stated"; then
    echo "this is not the behaviour described at the head of this script" >&2
    exit 1
fi
