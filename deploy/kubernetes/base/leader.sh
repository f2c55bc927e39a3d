#!/bin/sh
# Runs in the leader of a group: waits for the workers, and serves /engine with ranks in all pods of the group.
#
# LWS_LEADER_ADDRESS is LEADER.SUBDOMAIN.NAMESPACE, and worker 1 is LEADER-1.SUBDOMAIN.NAMESPACE (LeaderWorkerSet).
set -eu

(
    umask 077
    mkdir -p ~/.ssh
    cp /scripts/ssh_config ~/.ssh/config
)

leader=${LWS_LEADER_ADDRESS%%.*}
domain=${LWS_LEADER_ADDRESS#*.}
hosts=$leader:$RANKS_PER_POD
worker=1
while [ "$worker" -lt "$LWS_GROUP_SIZE" ]; do
    name=$leader-$worker.$domain
    until ssh -o BatchMode=yes -o ConnectTimeout=5 "$name" true; do sleep 1; done
    hosts=$hosts,$name:$RANKS_PER_POD
    worker=$((worker + 1))
done

# One pod needs no network between its ranks.
[ "$LWS_GROUP_SIZE" -eq 1 ] || set -- --hosts "$hosts" --interface "$INTERFACE"
exec trtllm-pt serve /engine --host 0.0.0.0 --served-model-name demo --drain-seconds 60 "$@"
