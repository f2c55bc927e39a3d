#!/usr/bin/env bash
# mpich 5.0.2 (UCX inside): ranks in two network namespaces pass messages through shared memory, beside their network.
#
# Behaviour: two network namespaces of one machine are joined by a link, and mpirun starts one rank in each, which it
# takes for two hosts. MPI says that the ranks share no memory. But 100 messages of 1 MiB from one to the other leave 20 kB
# on the link: UCX carries them through shared memory. With an IPC namespace for each rank the link carries all of them.
#
# Why one would guess otherwise: the ranks have no network but this link, mpirun reaches them as separate hosts, and MPI's
# own split by shared memory puts them apart. Links with delays between network namespaces are a common way to try
# programs for several machines on one. A program that is measured so seems to be nearly free of network costs.
#
# What to do instead: give each simulated machine an IPC namespace, too (unshare --ipc), as containers have by default.
# UCX_TLS=tcp,self also keeps messages on the link, but UCX then has no shared memory within a simulated machine either.
#
# It needs root for the namespaces, and iproute2.
#
# Output seen:
#   a network namespace per rank: ranks that share memory, as MPI says: 1; sent 104857600 bytes, over the link: under 1 %
#   with an IPC namespace, too: ranks that share memory, as MPI says: 1; sent 104857600 bytes, over the link: all
set -euo pipefail

work=$(mktemp -d)
name=ucx$$
remove() {
    ip netns del "$name-1" || true
    ip netns del "$name-2" || true
    rm -rf "$work"
}
trap remove EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "mpich==5.0.2" "mpi4py==4.1.2" "numpy==2.2.6"
ip netns add "$name-1"
ip netns add "$name-2"
ip -n "$name-1" link add wire type veth peer name wire netns "$name-2"
for node in 1 2; do
    ip -n "$name-$node" link set lo up
    ip -n "$name-$node" addr add "10.9.8.$node/24" dev wire
    ip -n "$name-$node" link set wire up
done

cat > "$work/send.py" <<'EOF_PYTHON'
from pathlib import Path

import numpy as np
from mpi4py import MPI

COUNT, SIZE = 100, 1 << 20
comm = MPI.COMM_WORLD
sharing = comm.Split_type(MPI.COMM_TYPE_SHARED).size
link = Path("/sys/class/net/wire/statistics/tx_bytes")
before = int(link.read_text())
data = np.zeros(SIZE, np.uint8)
for _ in range(COUNT):
    comm.Send(data, 1) if comm.rank == 0 else comm.Recv(data, 0)
comm.Barrier()
share = (int(link.read_text()) - before) / (COUNT * SIZE)
if comm.rank == 0:
    carried = "under 1 %" if share < 0.01 else "all" if share > 1 else f"{share:.0%}"
    print(f"ranks that share memory, as MPI says: {sharing}; sent {COUNT * SIZE} bytes, over the link: {carried}")
EOF_PYTHON

# mpirun calls this in place of ssh: `enter OPTIONS ADDRESS COMMAND`.
cat > "$work/enter" <<'EOF_SH'
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
node=${1##*.}
shift
exec ip netns exec "$NAMESPACES-$node" $ALSO /bin/sh -c "$*"
EOF_SH
chmod +x "$work/enter"

run() { # starts a rank in each network namespace, by way of a further command
    # shellcheck disable=SC2086  # the further command may be empty
    NAMESPACES=$name ALSO=$1 ip netns exec "$name-1" $1 "$work/venv/bin/mpirun" -launcher ssh -launcher-exec "$work/enter" \
        -hosts 10.9.8.1,10.9.8.2 -ppn 1 -n 2 "$work/venv/bin/python" "$work/send.py"
}
{
    echo "a network namespace per rank: $(run "")"
    echo "with an IPC namespace, too: $(run "unshare --ipc")"
} | tee "$work/seen"
# The output that the head of this script states.
sed -n 's/^#   //p' "$0" > "$work/stated"
if ! cmp --quiet "$work/seen" "$work/stated"; then
    echo "this is not the behaviour described at the head of this script" >&2
    exit 1
fi
