#!/bin/sh
# Keeps the SuperLink up, and beside it the SuperExec that starts ServerApps. A run survives the end
# of either. Ctrl-C ends both.
cd "$(dirname "$0")" || exit 1
. ./environment.sh
trap 'trap - EXIT INT TERM; kill 0' EXIT INT TERM
keep_up superlink flower-superlink --host {{ listen }} --port {{ port }} \
    --ssl-ca-certfile certificates/ca.crt --ssl-certfile certificates/server.crt \
    --ssl-keyfile certificates/server.key --enable-supernode-auth --database flower/state.db \
    --disable-runtime-dependency-installation --isolation process \
    --superexec-auth-secret-file superexec.secret &
keep_up superexec flower-superexec --runtime-api-address 127.0.0.1:{{ port }} \
    --root-certificates certificates/ca.crt --superexec-auth-secret-file superexec.secret &
echo "SuperLink on {{ listen }}:{{ port }}; logs in $PWD/logs"
wait
