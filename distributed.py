"""Data-parallel training: what the processes that torchrun started, the ranks, tell each other.

Each rank has its share of the envs, of the replay and of every batch. Gradients are averaged, so that all ranks make
the same step. Without torchrun there is one rank, and every function here gives back what it was given.

Values and flags go over the CPU (gloo), tensors over the GPUs (NCCL) once `set_device` named one. All ranks have to
call these functions in the same order.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PATIENCE = datetime.timedelta(days=7)  # with which ranks wait for the one that evaluates; a dead one is noticed at once

_rank, _size = 0, 1
_tensors = None  # group of the tensors, None for the group of all else


class RankError(ValueError):
    """An error of one rank that all of them raise."""


def start() -> None:
    """Joins the ranks of torchrun, if it started this process. Only rank 0 has a standard output then."""
    global _rank, _size
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    _rank, _size = dist.get_rank(), dist.get_world_size()
    if _rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def set_device(device: "torch.device") -> None:
    """Sets on which device the tensors of `average`, `all_gather_rows` and `broadcast` are."""
    global _tensors
    if _size > 1 and device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
        _tensors = torch.distributed.new_group(backend="nccl", device_id=device)


def stop() -> None:
    """Waits for the other ranks, then leaves them: torchrun ends the others with the first that ends with an error."""
    global _rank, _size, _tensors
    if _size > 1:
        import torch.distributed as dist

        all_gather(None)
        dist.destroy_process_group()
        _rank, _size, _tensors = 0, 1, None


def rank() -> int:
    """Number of this process; 0 is the one that logs, evaluates and saves."""
    return _rank


def is_main() -> bool:
    """Whether this is rank 0."""
    return _rank == 0


def size() -> int:
    """Number of processes."""
    return _size


def local_rank() -> int:
    """Number of this process among those of its machine, which is that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if _size > 1 else 0


# Values


def all_gather(value: Any) -> list:
    """The values of all ranks, in their order. Raises the RankError that a rank left `together` with."""
    if _size == 1:
        return [value]
    import torch.distributed as dist

    values: list = [None] * _size
    dist.all_gather_object(values, value)
    for other in values:
        if isinstance(other, RankError):
            raise other
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any rank."""
    if _size == 1:
        return flag
    import torch

    found = torch.tensor(int(flag))
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


@contextlib.contextmanager
def together(*errors: type[Exception]) -> Iterator[None]:
    """Ranks leave it all well or with an error: what one raises of `errors`, the others raise as RankError.

    Within it, ranks may exchange values by `all_gather` alone.
    """
    try:
        yield
        all_gather(None)
    except RankError:
        raise
    except errors as error:
        all_gather(RankError(str(error)))  # where the others wait: there or at their next exchange
        raise


# Tensors


def average(tensors: "Iterable[torch.Tensor]") -> None:
    """Puts the mean over all ranks in the place of each tensor: one exchange for all of them, of one type."""
    if _size == 1:
        return
    import torch

    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat, group=_tensors)
    flat /= _size
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def all_gather_rows(tensor: "torch.Tensor") -> "torch.Tensor":
    """The rows of all ranks, in their order and without gradient: (N, ...) → (ranks·N, ...)."""
    if _size == 1:
        return tensor
    import torch

    tensor = tensor.detach().contiguous()
    out = tensor.new_empty(_size * tensor.shape[0], *tensor.shape[1:])
    torch.distributed.all_gather(list(out.chunk(_size)), tensor, group=_tensors)
    return out


def broadcast(tensors: "Iterable[torch.Tensor]") -> None:
    """Puts the values of rank 0 in the place of each tensor's."""
    if _size == 1:
        return
    import torch

    for tensor in tensors:
        torch.distributed.broadcast(tensor, 0, group=_tensors)
