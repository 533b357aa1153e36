"""Data-parallel training: communication between the ranks, the processes that torchrun starts.

Each rank has its share of the envs, of the replay and of every batch. Gradients are averaged, so that all ranks make
the same step. Without torchrun there is one rank, and every function here returns its input.

Values and flags go over the CPU (gloo), tensors over the GPUs (NCCL) once `set_device` named one. All ranks must
call these functions in the same order.
"""

import contextlib
import datetime
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PATIENCE = datetime.timedelta(days=7)  # ranks wait this long for the one that evaluates; a dead one is noticed at once

_rank, _size = 0, 1
_tensors = None  # group for tensors, None for the default group


class RankError(ValueError):
    """An error of one rank that all of them raise."""


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1"


def start() -> None:
    """Joins the ranks of torchrun, if it started this process. Only rank 0 keeps its standard output then."""
    global _rank, _size
    if not launched():
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    _rank, _size = dist.get_rank(), dist.get_world_size()
    if _rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def set_device(device: "torch.device") -> None:
    """Sets the device of the tensors for `average`, `all_gather_rows` and `broadcast`."""
    global _tensors
    if _size > 1 and device.type == "cuda":
        import torch

        _tensors = torch.distributed.new_group(backend="nccl", device_id=device)


def stop() -> None:
    """Waits for the other ranks, then leaves the group: torchrun kills the others once one fails."""
    global _rank, _size, _tensors
    if _size > 1:
        import torch.distributed as dist

        all_gather(None)
        dist.destroy_process_group()
        _rank, _size, _tensors = 0, 1, None


def is_lost(error: RuntimeError) -> bool:
    """Whether an error in an exchange means that another rank has ended."""
    return _size > 1 and bool(re.search(r"gloo|nccl|connection (closed|reset)", str(error), re.IGNORECASE))


def rank() -> int:
    """Number of this process; 0 is the one that logs, evaluates and saves."""
    return _rank


def local_size() -> int:
    """Number of ranks on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _size > 1 else 1


def is_main() -> bool:
    """Whether this is rank 0."""
    return _rank == 0


def size() -> int:
    """Number of processes."""
    return _size


def local_rank() -> int:
    """Number of this process on its machine, and of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if _size > 1 else 0


# Values


def all_gather(value: Any) -> list:
    """The values of all ranks, in their order. Raises the RankError with which a rank left `together`."""
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
    """Ranks leave it all together or all with an error: if one raises any of `errors`, the others raise RankError.

    Within it, ranks may exchange values only by `all_gather`.
    """
    try:
        yield
        all_gather(None)
    except RankError:
        raise
    except errors as error:
        all_gather(RankError(str(error)))  # the others wait there or at their next exchange
        raise


# Tensors


def average(tensors: "Iterable[torch.Tensor]") -> None:
    """Replaces each tensor by its mean over all ranks, in one exchange; all must have the same type."""
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
    tensor = tensor.detach()
    if _size == 1:
        return tensor
    import torch

    tensor = tensor.contiguous()
    out = tensor.new_empty(_size * tensor.shape[0], *tensor.shape[1:])
    torch.distributed.all_gather(list(out.chunk(_size)), tensor, group=_tensors)
    return out


def all_gather_rows_with_gradient(tensor: "torch.Tensor") -> "torch.Tensor":
    """The rows of all ranks, (N, ...) → (ranks·N, ...), where this rank's rows pass their gradient, times the ranks.

    Each rank has the gradient of a common loss only at its own rows; as ranks average gradients, the factor turns the
    average into the sum over all rows.
    """
    if _size == 1:
        return tensor
    import torch

    blocks = list(all_gather_rows(tensor).chunk(_size))
    blocks[_rank] = blocks[_rank] + _size * (tensor - tensor.detach())
    return torch.cat(blocks)


def broadcast(tensors: "Iterable[torch.Tensor]") -> None:
    """Replaces each tensor's values by those of rank 0."""
    if _size == 1:
        return
    import torch

    for tensor in tensors:
        torch.distributed.broadcast(tensor, 0, group=_tensors)
