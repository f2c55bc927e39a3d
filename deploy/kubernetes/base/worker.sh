#!/bin/sh
# Runs in the workers of a group: an sshd of this user alone, over which the leader starts ranks.
set -eu
exec /usr/sbin/sshd -D -e -f /scripts/sshd_config
