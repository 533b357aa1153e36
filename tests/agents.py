"""Small agents and batches for the tests."""

import functools

import torch

import accel
import dreamer
from run.config import Config, load_config

SMALL = (
    "--device cpu --compile False --dyn_hidden 16 --dyn_deter 24 --dyn_stoch 4 --dyn_discrete 5 "
    "--dyn_cont_stoch_size 6 --units 16 --encoder.cnn_depth 4 --encoder.mlp_units 16 --imag_horizon 4 "
    "--batch_size 3 --batch_length 8 "
    "--disag_models 3 --disag_layers 1 --disag_units 16"
).split()
IMAGE = {"image": (64, 64, 3)}
VECTORS = {"position": (3,), "height": ()}


@functools.cache  # reading configs.yaml takes as long as an update of a small agent
def config(*flags: str, base: tuple[str, ...] = ("dmc_vision",)) -> Config:
    return load_config(["--configs", *base, *SMALL, *flags])


def agent(
    *flags: str, shapes=IMAGE, actions: int = 3, base=("dmc_vision",), seed: int = 0, fuse: str = "",
    log=lambda _: None, **changes,
) -> dreamer.Dreamer:  # fmt: skip
    """A small agent, with `changes` of the flags' settings.

    It runs on a backend: plain, unless `fuse` or a flag `--precision 16` says otherwise.
    """
    torch.manual_seed(seed)
    settings = config(*flags, base=base).replace(**changes)
    made = dreamer.Dreamer(settings, shapes=shapes, actions=actions)
    dtype = torch.bfloat16 if settings.precision == 16 else torch.float32
    accel.install(made, accel.Backend(fuse, dtype=dtype), log)
    return made


def batch(shapes=IMAGE, actions: int = 3, size: int = 3, length: int = 8, seed: int = 0, discrete: bool = False):
    g = torch.Generator().manual_seed(seed)
    out = {}
    for key, shape in shapes.items():
        if len(shape) == 3:
            out[key] = torch.randint(0, 256, (size, length, *shape), dtype=torch.uint8, generator=g)
        else:
            out[key] = torch.randn(size, length, *shape, generator=g)
    out["action"] = torch.rand(size, length, actions, generator=g) * 2 - 1
    if discrete:
        out["action"] = torch.nn.functional.one_hot(out["action"].argmax(-1), actions).float()
    out["reward"] = torch.rand(size, length, generator=g) * 2
    out["is_first"] = torch.zeros(size, length, dtype=torch.bool)
    out["is_first"][:, 0] = True
    out["is_first"][1, 3] = True
    out["is_terminal"] = torch.zeros(size, length, dtype=torch.bool)
    out["is_terminal"][1, 2] = True
    return out
