# Sourced by the other scripts. Nothing calls home, and no app installs packages.
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 RAY_USAGE_STATS_ENABLED=0
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export FLWR_HOME="$PWD/flower"
umask 077  # logs may quote records, and Flower's database has every message
# The commands of the environment that `fedsdr deploy init` ran in; change it where they lie elsewhere.
export PATH="{{ programs }}:$PATH"

# Start again whatever ends; its output goes to logs/NAME.log.
keep_up() {
    name=$1
    shift
    mkdir -p logs
    while :; do
        "$@" >> "logs/$name.log" 2>&1
        echo "$(date): $name ended with status $?, starting it again" >> "logs/$name.log"
        sleep 3
    done
}
