#!/bin/sh
# Keeps this client's trainer up, and the SuperNode that passes messages on to it. Ctrl-C ends both.
#
# Where another user runs the SuperNode (docs/deploy.md): RELAY_USER=name SOCKET=/a/path ./start.sh
# here, and SOCKET=/a/path relay/start.sh there.
cd "$(dirname "$0")" || exit 1
. ./environment.sh
trap 'trap - EXIT INT TERM; kill 0' EXIT INT TERM
export SOCKET="${SOCKET:-$PWD/trainer.sock}"
keep_up trainer fedsdr deploy trainer "$PWD" --socket "$SOCKET" --relay-user "$RELAY_USER" &
[ -n "$RELAY_USER" ] || relay/start.sh &
echo {{ title }}"; logs in $PWD/logs and $PWD/relay/logs"
wait
