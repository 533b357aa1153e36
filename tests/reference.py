"""The reference numbers of the public implementation, and our agent with the same sizes and weights."""

import json
import os
from pathlib import Path

import numpy as np
import torch

import dreamer
from run.config import Config, load_config
from run.public import import_checkpoint

FOLDER = Path(os.environ.get("PARITY_DIR", Path(__file__).parent / "parity"))
TOLERANCE = 1e-5  # relative to an array's largest entry


def sizes() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as data:
        return {k: data[k] for k in data.files}


def config() -> Config:
    s = sizes()
    flags = {
        "device": "cpu",
        "compile": False,
        "batch_size": s["B"],
        "batch_length": s["T"],
        "encoder.cnn_depth": s["depth"],
        "dyn_hidden": s["hidden"],
        "dyn_deter": s["deter"],
        "dyn_stoch": s["stoch"],
        "dyn_discrete": s["discrete"],
        "dyn_cont_stoch_size": s["proj"],
        "units": s["units"],
        "imag_horizon": s["horizon"],
        "block_size": s["block_size"],
        "patch_size": s["patch_size"],
        **{f"{head}_layers": s["layers"] for head in ("reward", "cont", "actor", "value")},
    }
    argv = ["--configs", "dmc_vision"]
    for key, value in flags.items():
        argv += [f"--{key}", str(value)]
    return load_config(argv)


def agent() -> "dreamer.Dreamer":
    """An agent with the checkpoint's weights. Every tensor of the checkpoint fits and every parameter is in it."""
    made = dreamer.Dreamer(config(), shapes={"image": load("batch")["image"].shape[2:]}, actions=sizes()["A"])
    report = import_checkpoint(made, FOLDER / "reference_checkpoint.pt")
    assert not report, report
    return made


def batch() -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in load("batch").items() if k != "discount"}


def close(ours: torch.Tensor | np.ndarray, theirs: np.ndarray, name: str) -> None:
    ours = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours, np.float64)
    assert ours.shape == theirs.shape, f"{name}: {ours.shape}, reference {theirs.shape}"
    scale = np.abs(theirs).max() if theirs.size else 0.0
    error = np.abs(ours - theirs).max() if theirs.size else 0.0
    assert error <= TOLERANCE * max(scale, 1e-12), f"{name}: off by {error:.3g}, largest entry {scale:.3g}"
