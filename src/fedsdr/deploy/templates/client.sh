#!/bin/sh
# Keeps this client's trainer up, and the SuperNode that passes messages on to it. Ctrl-C ends both.
cd "$(dirname "$0")" || exit 1
. ./environment.sh
trap 'trap - EXIT INT TERM; kill 0' EXIT INT TERM
keep_up trainer fedsdr deploy trainer "$PWD" &
keep_up supernode python -m fedsdr.deploy.node --superlink {{ host }}:{{ port }} --root-certificates ca.crt \
    --auth-supernode-private-key client.key --host 127.0.0.1 --port {{ node_port }} \
    --node-config "socket=\"$PWD/trainer.sock\"" &
echo "client {{ client }}; logs in $PWD/logs"
wait
