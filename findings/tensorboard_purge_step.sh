#!/usr/bin/env bash
# TensorBoard's page keeps the points that SummaryWriter(purge_step=N) says are to be purged. Its default server drops the
# old points of a tag only once this tag is written again at a lower step; what is not logged again (the last evaluation
# before a crash, a loss that was renamed) stays. With `--load_fast=false` they go only if the first writer of the run had
# a `purge_step` as well. Python's EventAccumulator, on the same files, drops them always.
#
# 2026-11-30, torch 2.13.0 (CPU), tensorboard 2.21.0, tensorboard-data-server 0.7.2, numpy 2.4.6. Steps 0 to 9 of "return"
# are written, then a second writer with purge_step=5 writes steps 5 to 7 of one tag. The highest step of "return"
# that each reader shows (7 or 4 is right):
#     first writer      then written   default   load_fast=false   EventAccumulator
#     SummaryWriter()   return         7         9                 7
#     SummaryWriter()   loss           9         9                 4
#     purge_step=0      return         7         7                 7
#     purge_step=0      loss           9         4                 4
#
# Why it matters: a run that was resumed from a checkpoint shows results that belong to no policy that there is any more,
# beside those that replaced them; what is seen differs from what scripts read from the same files.
# Expected before: as torch's documentation says, "events whose step larger or equal to 5 will be purged and hidden".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --no-compile torch==2.13.0 tensorboard==2.21.0 tensorboard-data-server==0.7.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder/runs" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import json
import socket
import subprocess
import sys
import time
import urllib.request

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

cases = {"SummaryWriter()": None, "purge_step=0": 0}
shown = {}
for name, first in cases.items():
    for again in ("return", "loss"):
        run = f"{'plain' if first is None else 'purge'}-{again}"
        with SummaryWriter(f"{sys.argv[1]}/{run}", purge_step=first) as writer:
            for step in range(10):
                writer.add_scalar("return", step, step)
        time.sleep(1.1)  # files are read in the order of their names, which contain the second
        with SummaryWriter(f"{sys.argv[1]}/{run}", purge_step=5) as writer:
            for step in range(5, 8):
                writer.add_scalar(again, step, step)
        shown[run] = [name, again]


def serve(load_fast):
    """The highest step of "return" that a TensorBoard shows, by run, once it has read all files."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", sys.argv[1], "--port", str(port), "--load_fast", load_fast]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    page = f"http://localhost:{port}/data/plugin/scalars/"
    get = lambda query: json.load(urllib.request.urlopen(page + query, timeout=10))
    try:
        for _ in range(120):
            time.sleep(1)
            try:
                tags = get("tags")
                if all({"return", run.split("-")[1]} <= set(tags.get(run, ())) for run in shown):
                    return {run: max(point[1] for point in get(f"scalars?run={run}&tag=return")) for run in shown}
            except OSError:
                pass
        raise SystemExit(f"no answer from TensorBoard with --load_fast={load_fast}")
    finally:
        server.terminate()
        server.wait()


for load_fast in ("true", "false"):
    for run, last in serve(load_fast).items():
        shown[run].append(last)
for run, row in shown.items():
    row.append(max(event.step for event in EventAccumulator(f"{sys.argv[1]}/{run}").Reload().Scalars("return")))
print(f"{'first writer':18}{'then written':15}{'default':10}{'load_fast=false':18}EventAccumulator")
for row in shown.values():
    print("{:18}{:15}{:<10}{:<18}{}".format(*row))
seen = [row[2:] for row in shown.values()]
sys.exit(0 if seen == [[7, 9, 7], [9, 9, 4], [7, 7, 7], [9, 4, 4]] else 1)
PYTHON
