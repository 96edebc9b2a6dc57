#!/bin/sh
# Keeps the SuperNode up, which passes messages on to the trainer at $SOCKET.
cd "$(dirname "$0")" || exit 1
. ./environment.sh
trap 'trap - EXIT INT TERM; kill 0' EXIT INT TERM
SOCKET="${SOCKET:-$(dirname "$PWD")/trainer.sock}"
keep_up supernode python -m fedsdr.deploy.flower.supernode --superlink {{ host }}:{{ port }} --root-certificates ca.crt \
    --auth-supernode-private-key node.key --host 127.0.0.1 --port {{ node_port }} \
    --node-config "socket=\"$SOCKET\"" &
wait
