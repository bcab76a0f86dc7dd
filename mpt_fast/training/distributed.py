"""The processes of a run: which one this is, and the few things they tell each other."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["World", "processes"]


@dataclass(frozen=True)
class World:
    """This process among `size`. Without torchrun there is one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """`values` of every rank, stacked as [size, ...] on each of them."""
        if self.size == 1:
            return values.unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values)
        return torch.stack(parts)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def share_statistics(self, model: nn.Module) -> None:
        """Give every rank the batch-norm running statistics of rank 0."""
        if self.size == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for buffer in module.buffers(recurse=False):
                    dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def processes(device_type: str) -> Iterator[World]:
    """Join the processes that torchrun started (gloo on a CPU, nccl on a GPU), if it did.

    A process group that the caller set up is used and left as it is.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), local_rank)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank)
    finally:
        dist.destroy_process_group()
