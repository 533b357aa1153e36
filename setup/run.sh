#!/usr/bin/env bash
# Installs what is missing, then trains: `bash setup/run.sh --configs dmc_vision --task dmc_walker_walk --logdir ./log/walk`.
# All flags go to dreamer.py; without any it trains the quickstart. Paths are relative to the folder it is called from.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/setup/install_env.sh"
if [ $# = 0 ]; then set -- --configs dmc_vision small quickstart; fi
exec "$root/.venv/bin/python" -u "$root/dreamer.py" "$@"  # exec: Ctrl-C and SIGTERM reach the run itself
