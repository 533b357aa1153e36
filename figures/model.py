"""Draws figures/model.png, the diagram of HRSSM in docs/algorithm.md: `python figures/model.py [FILE.png]`."""

import argparse
import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK = "#2b2f36"
ONLINE, ONLINE_FILL = "#2f6db3", "#e3edf8"  # trained by gradients
TARGET, TARGET_FILL = "#2e8b62", "#e2f2ea"  # moving averages, no gradient
LOSS, LOSS_FILL = "#c4473f", "#fbe7e5"
DREAM, DREAM_FILL = "#7a4fa3", "#efe7f6"
SHADE = "#f7f7f9"


class Canvas:
    """Boxes, arrows and words in units of a grid, (0, 0) at the lower left."""

    def __init__(self, width: float, height: float):
        self.figure, self.axis = plt.subplots(figsize=(width, height))
        self.axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axis.set_axis_off()
        self.figure.subplots_adjust(0, 0, 1, 1)

    def panel(
        self, x: float, y: float, width: float, height: float, title: str, color: str, below: bool = False
    ) -> None:
        box = FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.15", facecolor=SHADE, edgecolor=color,
            linewidth=1.2, zorder=0,
        )
        self.axis.add_patch(box)
        line = y + (0.2 if below else height - 0.24)
        self.words(x + 0.18, line, title, color=color, ha="left", weight="bold", size=10.5)

    def box(
        self, x: float, y: float, width: float, height: float, text: str, edge: str, fill: str, size: float = 9
    ) -> None:
        """Centered at (x, y)."""
        patch = FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.09", facecolor=fill,
            edgecolor=edge, linewidth=1.4, zorder=3,
        )
        self.axis.add_patch(patch)
        self.words(x, y, text, size=size, zorder=4)

    def state(self, x: float, y: float, text: str, edge: str, fill: str) -> None:
        """A latent state."""
        self.axis.add_patch(plt.Circle((x, y), 0.31, facecolor=fill, edgecolor=edge, linewidth=1.6, zorder=3))
        self.words(x, y, text, size=10, zorder=4)

    def arrow(self, start: tuple, end: tuple, color: str = INK, dashed: bool = False) -> None:
        patch = FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=10, shrinkA=0, shrinkB=0, color=color, linewidth=1.3,
            linestyle=(0, (3.5, 2.2)) if dashed else "-", zorder=2,
        )
        self.axis.add_patch(patch)

    def line(self, *points: tuple, color: str = INK, dashed: bool = False) -> None:
        """Straight segments, the last one an arrow."""
        xs, ys = zip(*points[:-1], strict=True)
        self.axis.plot(xs, ys, color=color, linewidth=1.3, linestyle=(0, (3.5, 2.2)) if dashed else "-", zorder=2)
        self.arrow(points[-2], points[-1], color=color, dashed=dashed)

    def words(self, x: float, y: float, text: str, size: float = 9, **style) -> None:
        style = {"ha": "center", "va": "center", "color": INK, "zorder": 5, "linespacing": 1.25} | style
        self.axis.text(x, y, text, fontsize=size, **style)

    def frame(self, x: float, y: float, size: float, masked: bool, edge: str) -> None:
        """A small image of a walker, with or without its cube mask, centered at (x, y)."""
        left, low = x - size / 2, y - size / 2
        image = np.linspace(0.62, 0.9, 48)[::-1, None, None] * np.array([0.62, 0.78, 0.95])
        image = np.repeat(image, 48, 1)
        image[:13] = (0.36, 0.45, 0.58)
        self.axis.imshow(image, extent=(left, left + size, low, low + size), origin="lower", zorder=2, aspect="equal")
        joints = np.array([(0.42, 0.80), (0.50, 0.55), (0.66, 0.40), (0.60, 0.24), (0.70, 0.24)]) * size + (left, low)
        other = np.array([(0.50, 0.55), (0.40, 0.38), (0.30, 0.26), (0.39, 0.24)]) * size + (left, low)
        for limb in (other, joints):
            self.axis.plot(*limb.T, color="#d08a3e", linewidth=5 * size, solid_capstyle="round", zorder=3)
        if masked:
            hidden = np.random.default_rng(4).permutation(36)[:18]
            for cell in hidden:
                corner = (left + cell % 6 * size / 6, low + cell // 6 * size / 6)
                self.axis.add_patch(Rectangle(corner, size / 6, size / 6, facecolor="#8c8c8c", linewidth=0, zorder=4))
        self.axis.add_patch(Rectangle((left, low), size, size, fill=False, edgecolor=edge, linewidth=1.3, zorder=5))


def draw(path: Path) -> None:
    c = Canvas(13.0, 8.1)
    c.panel(0.15, 4.85, 8.75, 3.1, "Masked branch, trained", ONLINE)
    c.panel(0.15, 0.15, 8.75, 3.1, "Target branch, moving averages, no gradient", TARGET, below=True)
    c.panel(9.1, 0.15, 3.75, 7.8, "Behavior, learned in imagination", DREAM)
    masked_branch(c)
    target_branch(c)
    losses(c)
    imagination(c)
    c.figure.savefig(path, dpi=160, facecolor="white")
    plt.close(c.figure)


def masked_branch(c: Canvas) -> None:
    c.frame(0.95, 5.95, 1.0, True, ONLINE)
    c.words(0.95, 5.22, "image under\na cube mask", size=8)
    c.box(2.45, 5.95, 1.05, 0.62, "encoder", ONLINE, ONLINE_FILL)
    c.state(4.0, 7.05, r"$h_t$", ONLINE, "#ffffff")
    c.state(4.0, 5.95, r"$z_t$", ONLINE, ONLINE_FILL)
    c.state(5.2, 7.05, r"$\hat z_t$", ONLINE, "#ffffff")
    c.box(6.6, 7.05, 0.9, 0.62, "GRU", ONLINE, ONLINE_FILL)
    c.state(8.1, 7.05, r"$h_{t+1}$", ONLINE, "#ffffff")
    c.state(8.1, 5.95, r"$\hat z_{t+1}$", ONLINE, "#ffffff")
    c.arrow((1.47, 5.95), (1.92, 5.95), ONLINE)
    c.arrow((2.98, 5.95), (3.69, 5.95), ONLINE)
    c.arrow((4.0, 6.74), (4.0, 6.26), ONLINE)
    c.arrow((4.31, 7.05), (4.89, 7.05), ONLINE)
    c.line((4.31, 5.95), (6.4, 5.95), (6.4, 6.74), color=ONLINE)
    c.line((4.0, 7.36), (4.0, 7.66), (6.6, 7.66), (6.6, 7.36), color=ONLINE)
    c.words(6.84, 6.16, "action", size=8.5)
    c.arrow((6.84, 6.28), (6.84, 6.73), INK)
    c.arrow((7.05, 7.05), (7.79, 7.05), ONLINE)
    c.arrow((8.1, 6.74), (8.1, 6.26), ONLINE)


def target_branch(c: Canvas) -> None:
    c.frame(0.95, 1.55, 1.0, False, TARGET)
    c.words(0.95, 0.88, "whole image", size=8)
    c.box(2.45, 1.55, 1.05, 0.62, "EMA\nencoder", TARGET, TARGET_FILL)
    c.state(4.0, 1.55, r"$\bar z_t$", TARGET, TARGET_FILL)
    c.box(6.6, 1.55, 1.1, 0.62, "EMA\ndynamics", TARGET, TARGET_FILL)
    c.state(8.1, 1.55, r"$\tilde z_{t+1}$", TARGET, "#ffffff")
    c.arrow((1.47, 1.55), (1.92, 1.55), TARGET)
    c.arrow((2.98, 1.55), (3.69, 1.55), TARGET)
    c.arrow((4.31, 1.55), (6.04, 1.55), TARGET)
    c.arrow((7.16, 1.55), (7.79, 1.55), TARGET)
    c.words(6.6, 2.46, "action", size=8.5)
    c.arrow((6.6, 2.34), (6.6, 1.87), INK)
    # Inputs from the masked branch: its deterministic state, and its weights through the EMA.
    c.line((3.69, 7.05), (3.36, 7.05), (3.36, 2.2), (3.77, 1.77), color=ONLINE)
    c.words(3.48, 3.42, r"same $h_t$", size=8, color=ONLINE, ha="left")
    c.line((2.45, 5.63), (2.45, 1.87), color=TARGET, dashed=True)
    c.words(2.38, 3.42, "EMA of the weights", size=8, color=TARGET, ha="right")


def losses(c: Canvas) -> None:
    """Between the branches: the comparisons, dashed."""

    def loss(x: float, y: float, width: float, text: str, height: float = 0.42) -> None:
        c.box(x, y, width, height, text, LOSS, LOSS_FILL, size=8.5)

    def compare(*points: tuple) -> None:
        c.line(*points, color=LOSS, dashed=True)

    loss(5.2, 6.4, 0.62, "KL", 0.34)
    compare((5.2, 6.74), (5.2, 6.57))
    compare((4.28, 6.09), (4.88, 6.33))
    loss(5.65, 5.3, 1.5, "reward, continue", 0.36)
    compare((4.27, 5.8), (4.89, 5.42))

    loss(4.17, 4.28, 1.2, "latent\nreconstruction", 0.56)
    compare((4.0, 5.64), (4.0, 4.57))
    compare((4.0, 1.86), (4.0, 3.99))
    loss(7.05, 4.05, 3.1, "bisimulation: latents of any two states are\nas far apart as rewards and next latents", 0.6)
    compare((4.18, 5.69), (5.58, 4.36))
    compare((4.24, 1.75), (5.58, 3.74))
    compare((8.1, 5.64), (8.1, 4.36))
    compare((8.1, 1.86), (8.1, 3.74))

    for y, edge, fill, text in ((4.55, ONLINE, ONLINE_FILL, "posterior"), (4.2, ONLINE, "#ffffff", "prior")):
        c.axis.add_patch(plt.Circle((0.45, y), 0.11, facecolor=fill, edgecolor=edge, linewidth=1.3))
        c.words(0.68, y, text, size=8, ha="left")
    c.line((0.3, 3.86), (0.62, 3.86), color=LOSS, dashed=True)
    c.words(0.68, 3.86, "into a loss", size=8, ha="left")


def imagination(c: Canvas) -> None:
    xs = (9.75, 10.98, 12.2)
    c.line((4.0, 1.24), (4.0, 0.62), (9.75, 0.62), (9.75, 1.24), color=DREAM)
    c.words(6.6, 0.78, "every target posterior starts an imagined rollout", size=8, color=DREAM)
    for i, x in enumerate(xs):
        c.state(x, 1.55, rf"$s_{i}$", DREAM, TARGET_FILL if i == 0 else "#ffffff")
        c.box(x, 4.15, 0.98, 0.72, "reward\ncontinue\nvalue", DREAM, DREAM_FILL, size=7.5)
        c.line((x - 0.2, 1.79), (x - 0.2, 3.78), color=DREAM)
        c.arrow((x, 4.51), (x, 5.17), DREAM)
    for x, following in itertools.pairwise(xs):
        c.arrow((x + 0.31, 1.55), (following - 0.31, 1.55), DREAM)
        c.box(x + 0.38, 2.75, 0.66, 0.4, "actor", DREAM, DREAM_FILL)
        c.arrow((x + 0.12, 1.84), (x + 0.3, 2.54), DREAM)
        c.arrow((x + 0.5, 2.54), (following - 0.42, 1.62), INK)
    c.words(12.66, 1.55, "…", size=13)
    c.words(10.98, 0.97, "online dynamics, prior only, H = 15 steps", size=8, color=DREAM)
    c.box(10.98, 5.4, 3.3, 0.44, r"$\lambda$-returns, normalized by their 5 to 95 % range", DREAM, DREAM_FILL, size=8)
    c.box(10.1, 6.75, 1.45, 0.62, "actor loss:\nreturn, entropy", LOSS, LOSS_FILL, size=8)
    c.box(11.86, 6.75, 1.45, 0.62, "value loss:\ntwo-hot return", LOSS, LOSS_FILL, size=8)
    c.line((10.1, 5.63), (10.1, 6.43), color=LOSS, dashed=True)
    c.line((11.86, 5.63), (11.86, 6.43), color=LOSS, dashed=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_suffix(".png"))
    draw(parser.parse_args().file)
