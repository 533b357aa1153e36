#!/usr/bin/env bash
# Installs what is missing, then trains: `bash setup/run.sh --configs dmc_vision --task dmc_walker_walk --logdir ./log/walk`.
# Flags go to dreamer.py; without --configs, --task, --eval_only or --help it trains the quickstart with them, in
# ./log/quickstart unless --logdir names another folder. Paths are relative to the folder it is called from.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/setup/install_env.sh"
quickstart=(--configs dmc_vision small quickstart)
for flag; do
    case $flag in
        --configs | --configs=* | --task | --task=* | --eval_only | --eval_only=* | --help | -h) quickstart=() ;;
    esac
done
exec "$root/.venv/bin/python" -u "$root/dreamer.py" "$@" "${quickstart[@]}"  # exec: Ctrl-C and SIGTERM reach the run itself
