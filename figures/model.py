"""Draws figures/model.png, the diagram of HRSSM in docs/algorithm.md: `python figures/model.py [FILE.png]`."""

import argparse
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

INK = "#2b2f36"
ONLINE = "#2f6db3"  # trained by gradients
TARGET = "#2e8b62"  # moving averages, no gradient
LOSS = "#c4473f"
DREAM = "#7a4fa3"
WHITE = "#ffffff"
FILL = {ONLINE: "#e3edf8", TARGET: "#e2f2ea", LOSS: "#fbe7e5", DREAM: "#efe7f6"}


class Canvas:
    """Boxes, arrows and words in units of a grid, (0, 0) at the lower left."""

    def __init__(self, width: float, height: float):
        self.figure, self.axis = plt.subplots(figsize=(width, height))
        self.axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axis.set_axis_off()
        self.figure.subplots_adjust(0, 0, 1, 1)

    def panel(self, x: float, y: float, width: float, height: float, title: str, title_y: float, color: str) -> None:
        style = {"facecolor": "#f7f7f9", "edgecolor": color, "linewidth": 1.2, "zorder": 0}
        self.axis.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.15", **style))
        self.words(x + 0.18, title_y, title, 10.5, color=color, ha="left", weight="bold")

    def box(self, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 9) -> None:
        """Centered at (x, y)."""
        corner, style = (x - width / 2, y - height / 2), {"facecolor": FILL[color], "edgecolor": color, "zorder": 3}
        patch = FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.09", linewidth=1.4, **style)
        self.axis.add_patch(patch)
        self.words(x, y, text, size, zorder=4)

    def state(self, x: float, y: float, text: str, color: str, fill: str = WHITE) -> None:
        """A latent state."""
        self.axis.add_patch(Circle((x, y), 0.31, facecolor=fill, edgecolor=color, linewidth=1.6, zorder=3))
        self.words(x, y, text, 10, zorder=4)

    def arrow(self, *points: tuple[float, float], color: str = INK, dashed: bool = False) -> None:
        """Straight segments, the last one with a head."""
        style = {"color": color, "linewidth": 1.3, "linestyle": (0, (3.5, 2.2)) if dashed else "-", "zorder": 2}
        self.axis.plot(*zip(*points[:-1], strict=True), **style)
        head = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 0, "shrinkB": 0}
        self.axis.add_patch(FancyArrowPatch(*points[-2:], **head, **style))

    def words(self, x: float, y: float, text: str, size: float = 8, **style) -> None:
        style = {"ha": "center", "va": "center", "color": INK, "zorder": 5, "linespacing": 1.25} | style
        self.axis.text(x, y, text, fontsize=size, **style)

    def frame(self, x: float, y: float, masked: bool, color: str) -> None:
        """A small image of a walker, with or without its cube mask, centered at (x, y)."""
        left, low = x - 0.5, y - 0.5
        image = np.linspace(0.62, 0.9, 48)[::-1, None, None] * np.array([0.62, 0.78, 0.95])
        image = np.repeat(image, 48, 1)
        image[:13] = (0.36, 0.45, 0.58)
        self.axis.imshow(image, extent=(left, left + 1, low, low + 1), origin="lower", zorder=2, aspect="equal")
        legs = [(0.50, 0.55), (0.40, 0.38), (0.30, 0.26), (0.39, 0.24)]
        body = [(0.42, 0.80), (0.50, 0.55), (0.66, 0.40), (0.60, 0.24), (0.70, 0.24)]
        for limb in (legs, body):
            points = np.add(limb, (left, low))
            self.axis.plot(*points.T, color="#d08a3e", linewidth=5, solid_capstyle="round", zorder=3)
        for cell in np.random.default_rng(4).permutation(36)[:18] if masked else ():
            corner = (left + cell % 6 / 6, low + cell // 6 / 6)
            self.axis.add_patch(Rectangle(corner, 1 / 6, 1 / 6, facecolor="#8c8c8c", linewidth=0, zorder=4))
        self.axis.add_patch(Rectangle((left, low), 1, 1, fill=False, edgecolor=color, linewidth=1.3, zorder=5))


def draw(path: Path) -> None:
    c = Canvas(13.0, 8.1)
    c.panel(0.15, 4.85, 8.75, 3.1, "Masked branch, trained", 7.71, ONLINE)
    c.panel(0.15, 0.15, 8.75, 3.1, "Target branch, moving averages, no gradient", 0.35, TARGET)
    c.panel(9.1, 0.15, 3.75, 7.8, "Behavior, learned in imagination", 7.71, DREAM)
    masked_branch(c)
    target_branch(c)
    losses(c)
    imagination(c)
    c.figure.savefig(path, dpi=160, facecolor="white")
    plt.close(c.figure)


def masked_branch(c: Canvas) -> None:
    c.frame(0.95, 5.95, True, ONLINE)
    c.words(0.95, 5.22, "image under\na cube mask")
    c.box(2.45, 5.95, 1.05, 0.62, "encoder", ONLINE)
    c.state(4.0, 7.05, r"$h_t$", ONLINE)
    c.state(4.0, 5.95, r"$z_t$", ONLINE, FILL[ONLINE])
    c.state(5.2, 7.05, r"$\hat z_t$", ONLINE)
    c.box(6.6, 7.05, 0.9, 0.62, "GRU", ONLINE)
    c.state(8.1, 7.05, r"$h_{t+1}$", ONLINE)
    c.state(8.1, 5.95, r"$\hat z_{t+1}$", ONLINE)
    for points in (
        [(1.47, 5.95), (1.92, 5.95)],
        [(2.98, 5.95), (3.69, 5.95)],
        [(4.0, 6.74), (4.0, 6.26)],
        [(4.31, 7.05), (4.89, 7.05)],
        [(4.31, 5.95), (6.4, 5.95), (6.4, 6.74)],
        [(4.0, 7.36), (4.0, 7.66), (6.6, 7.66), (6.6, 7.36)],
        [(7.05, 7.05), (7.79, 7.05)],
        [(8.1, 6.74), (8.1, 6.26)],
    ):
        c.arrow(*points, color=ONLINE)
    c.words(6.84, 6.16, "action", 8.5)
    c.arrow((6.84, 6.28), (6.84, 6.73))


def target_branch(c: Canvas) -> None:
    c.frame(0.95, 1.55, False, TARGET)
    c.words(0.95, 0.88, "whole image")
    c.box(2.45, 1.55, 1.05, 0.62, "EMA\nencoder", TARGET)
    c.state(4.0, 1.55, r"$\bar z_t$", TARGET, FILL[TARGET])
    c.box(6.6, 1.55, 1.1, 0.62, "EMA\ndynamics", TARGET)
    c.state(8.1, 1.55, r"$\tilde z_{t+1}$", TARGET)
    for left, right in ((1.47, 1.92), (2.98, 3.69), (4.31, 6.04), (7.16, 7.79)):
        c.arrow((left, 1.55), (right, 1.55), color=TARGET)
    c.words(6.6, 2.46, "action", 8.5)
    c.arrow((6.6, 2.34), (6.6, 1.87))
    # Inputs from the masked branch: its deterministic state, and its weights through the EMA.
    c.arrow((3.69, 7.05), (3.36, 7.05), (3.36, 2.2), (3.77, 1.77), color=ONLINE)
    c.words(3.48, 3.42, r"same $h_t$", color=ONLINE, ha="left")
    c.arrow((2.45, 5.63), (2.45, 1.87), color=TARGET, dashed=True)
    c.words(2.38, 3.42, "EMA of the weights", color=TARGET, ha="right")


def losses(c: Canvas) -> None:
    """Between the branches: the comparisons, dashed."""
    c.box(5.2, 6.4, 0.62, 0.34, "KL", LOSS, 8.5)
    c.box(5.65, 5.3, 1.5, 0.36, "reward, continue", LOSS, 8.5)
    c.box(4.17, 4.28, 1.2, 0.56, "latent\nreconstruction", LOSS, 8.5)
    distances = "bisimulation: latents of any two states are\nas far apart as rewards and next latents"
    c.box(7.05, 4.05, 3.1, 0.6, distances, LOSS, 8.5)
    for start, end in (
        ((5.2, 6.74), (5.2, 6.57)),  # KL
        ((4.28, 6.09), (4.88, 6.33)),
        ((4.27, 5.8), (4.89, 5.42)),  # reward, continue
        ((4.0, 5.64), (4.0, 4.57)),  # latent reconstruction
        ((4.0, 1.86), (4.0, 3.99)),
        ((4.18, 5.69), (5.58, 4.36)),  # bisimulation
        ((4.24, 1.75), (5.58, 3.74)),
        ((8.1, 5.64), (8.1, 4.36)),
        ((8.1, 1.86), (8.1, 3.74)),
        ((0.3, 3.86), (0.62, 3.86)),  # the key
    ):
        c.arrow(start, end, color=LOSS, dashed=True)
    for y, fill, text in ((4.55, FILL[ONLINE], "posterior"), (4.2, WHITE, "prior")):
        c.axis.add_patch(Circle((0.45, y), 0.11, facecolor=fill, edgecolor=ONLINE, linewidth=1.3))
        c.words(0.68, y, text, ha="left")
    c.words(0.68, 3.86, "into a loss", ha="left")


def imagination(c: Canvas) -> None:
    xs = (9.75, 10.98, 12.2)
    c.arrow((4.0, 1.24), (4.0, 0.62), (9.75, 0.62), (9.75, 1.24), color=DREAM)
    c.words(6.6, 0.78, "every target posterior starts an imagined rollout", color=DREAM)
    for i, x in enumerate(xs):
        c.state(x, 1.55, rf"$s_{i}$", DREAM, WHITE if i else FILL[TARGET])
        c.box(x, 4.15, 0.98, 0.72, "reward\ncontinue\nvalue", DREAM, 7.5)
        c.arrow((x - 0.2, 1.79), (x - 0.2, 3.78), color=DREAM)
        c.arrow((x, 4.51), (x, 5.17), color=DREAM)
    for x, following in itertools.pairwise(xs):
        c.arrow((x + 0.31, 1.55), (following - 0.31, 1.55), color=DREAM)
        c.box(x + 0.38, 2.75, 0.66, 0.4, "actor", DREAM)
        c.arrow((x + 0.12, 1.84), (x + 0.3, 2.54), color=DREAM)
        c.arrow((x + 0.5, 2.54), (following - 0.42, 1.62))
    c.words(12.66, 1.55, "…", 13)
    c.words(10.98, 0.97, "online dynamics, prior only, H = 15 steps", color=DREAM)
    c.box(10.98, 5.4, 3.3, 0.44, r"$\lambda$-returns, normalized by their 5 to 95% range", DREAM, 8)
    for x, text in ((10.1, "actor loss:\nreturn, entropy"), (11.86, "value loss:\ntwo-hot return")):
        c.box(x, 6.75, 1.45, 0.62, text, LOSS, 8)
        c.arrow((x, 5.63), (x, 6.43), color=LOSS, dashed=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_suffix(".png"))
    plt.switch_backend("agg")
    try:
        draw(file := parser.parse_args().file)
    except (OSError, ValueError) as error:  # no such folder, no format of images
        parser.error(f"{file}: {error}")
