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

from PIL import Image
from tensorboard import program

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGES = ("timeseries", "scalars", "custom_scalars", "images", "text", "hparams")


class PictureError(Exception):
    """An error for the user, in one line."""


def serve(logdir: Path, patience: float = 120) -> str:
    """Starts TensorBoard in a thread of this process; returns its address once it has read everything."""
    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(logdir), "--port", "0", "--load_fast", "false"])
    url, deadline = board.launch(), time.monotonic() + patience
    before = None
    while time.monotonic() < deadline:
        time.sleep(2)
        tags = urllib.request.urlopen(f"{url}data/plugin/scalars/tags").read()
        if tags == before and len(tags) > 2:
            return url
        before = tags
    raise PictureError(f"{logdir}: TensorBoard found no scalars there in {patience:.0f} s")


def draw(browser: str, address: str, size: tuple[int, int], path: Path, patience: float = 180) -> None:
    """Writes the page as a palette PNG, a third of the size."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        command = [browser, "--headless=new", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        command += ["--enable-unsafe-swiftshader", "--virtual-time-budget=60000"]  # TensorBoard draws with WebGL
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium does not start as root with it
        try:
            done = subprocess.run([*command, address], capture_output=True, text=True, timeout=patience)
        except subprocess.TimeoutExpired:
            raise PictureError(f"{browser} did not draw {address} in {patience:.0f} s") from None
        if not shot.exists():
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise PictureError(f"{browser} made no screenshot of {address}: {reason}")
        with Image.open(shot) as image:
            image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tensorboard.png"))
    parser.add_argument("--page", choices=PAGES, default="custom_scalars")
    parser.add_argument("--size", type=int, nargs=2, default=(1500, 1188), help="width and height of the window")
    args = parser.parse_args()
    try:
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            raise PictureError("no browser on PATH: install chromium, e.g. apt-get install chromium")
        if not any(args.logdir.rglob("events.out.tfevents.*")):
            raise PictureError(f"{args.logdir}: no run there (a run has an events.out.tfevents file)")
        draw(browser, f"{serve(args.logdir)}#{args.page}", tuple(args.size), args.out)
    except PictureError as error:
        print(f"dashboard.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
