#!/usr/bin/env bash
# Makes requirements.txt, the lock, from setup/requirements.in; flags go to `uv pip compile`. Needs uv and the network.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
PATH=$PATH:$root/.venv/bin
uv pip compile --quiet --universal --python-version 3.11 --annotation-style line --custom-compile-command "bash setup/lock.sh" \
    setup/requirements.in --output-file requirements.txt "$@"
# What torch's build for GPUs needs is left to torch, which pins it: its build for CPUs does without these gigabytes.
sed -Ei "/^(nvidia-|cuda-|triton=)/d; s/ (;|and) platform_machine == 'x86_64' and sys_platform == 'linux'//" requirements.txt
