"""A screenshot of TensorBoard's page: `python figures/dashboard.py LOGDIR [--out figures/tensorboard.png]`.

LOGDIR is that of a run or a folder of runs. It serves the page until headless Chromium has
drawn it. Needs chromium (`apt-get install chromium`) or google-chrome on PATH.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

from PIL import Image
from tensorboard import program

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1500, 1188  # window size in pixels


def fail(problem: str) -> NoReturn:
    sys.exit(f"dashboard.py: {problem}")


def serve(logdir: Path, patience: float = 120) -> str:
    """Starts TensorBoard in a thread of this process; returns its address once it has read everything."""
    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(logdir), "--port", "0", "--load_fast", "false"])
    url, before, deadline = board.launch(), None, time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(2)
        tags = urllib.request.urlopen(f"{url}data/plugin/scalars/tags").read()
        if tags == before and len(tags) > 2:
            return url
        before = tags
    fail(f"{logdir}: TensorBoard found no scalars there in {patience:.0f} s")


def draw(browser: str, address: str, path: Path, patience: float = 180) -> None:
    """Writes the page as a palette PNG, a third of the size."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        command = [browser, "--headless=new", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        command += ["--enable-unsafe-swiftshader", "--virtual-time-budget=60000"]  # TensorBoard draws with WebGL
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium does not start as root with it
        try:
            done = subprocess.run([*command, address], capture_output=True, text=True, timeout=patience)
        except subprocess.TimeoutExpired:
            fail(f"{browser} did not draw {address} in {patience:.0f} s")
        if not shot.exists():
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            fail(f"{browser} made no screenshot of {address}: {reason}")
        with Image.open(shot) as image:
            image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tensorboard.png"))
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        fail("no browser on PATH: install chromium, e.g. apt-get install chromium")
    if not any(args.logdir.rglob("events.out.tfevents.*")):
        fail(f"{args.logdir}: no run there (a run has an events.out.tfevents file)")
    draw(browser, f"{serve(args.logdir)}#custom_scalars", args.out)


if __name__ == "__main__":
    main()
