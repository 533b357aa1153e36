#!/usr/bin/env bash
# Installs what is missing, then checks the code's style and runs all tests; flags go to pytest: `bash setup/test.sh -k replay`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/setup/install_env.sh"
cd "$root"
.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"  # one test file at a time per core
