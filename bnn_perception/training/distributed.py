"""The device of a process, and the processes that train one net together.

Several processes are started by ``torchrun``; gradients are averaged by PyTorch's DistributedDataParallel. Each process
takes its part of every batch, so that an epoch has as many steps as one process would make of it. On GPUs batch norm
sees the whole batch (SyncBatchNorm); on a CPU, for which PyTorch has no such layer, each process normalizes by its own
part. The process of rank 0 alone writes and prints.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from bnn_perception.training.config import ConfigError

#: What ``--device`` takes.
DEVICES = ("auto", "cuda", "cpu")


@dataclass(frozen=True)
class World:
    """This process among ``size`` that train together.

    Attributes:
        device: what this process computes on.
        rank: number of this process, from 0.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process first and then in all others, which find what it has written."""
        if self.size > 1 and not self.is_main:
            distributed.barrier()
        yield
        if self.size > 1 and self.is_main:
            distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the device, in each of them."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def parallel(self, net: nn.Module) -> nn.Module:
        """What to call for a training step of ``net``: it averages the gradients over the processes.

        Parameters and buffers are those of ``net`` itself.
        """
        if self.size == 1:
            return net
        if self.device.type == "cpu":
            return DistributedDataParallel(net)
        # A second tree of modules around the same tensors: `net` keeps the batch norms that everything else knows.
        shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
        tree = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net, shared))
        return DistributedDataParallel(tree, [self.device])

    def average_buffers(self, net: nn.Module) -> None:
        """Make the running means and variances of all processes equal: their mean."""
        if self.size > 1:
            for buffer in net.buffers():
                if buffer.is_floating_point():
                    self.sum(buffer).div_(self.size)

    def autocast(self, precision: str) -> AbstractContextManager[object]:
        """The arithmetic of the training steps, by ``precision`` of the configuration."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.uses_bfloat16(precision))

    def uses_bfloat16(self, precision: str) -> bool:
        """Whether ``precision`` means bfloat16 here; ``auto`` does on a GPU of compute capability 8.0 or later."""
        if precision == "auto":
            return self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (8, 0)
        return precision == "bfloat16"

    @property
    def device_name(self) -> str:
        """Name of what this process computes on, to be shown."""
        return "CPU" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)

    def describe(self, precision: str) -> str:
        """The devices and their arithmetic, to be shown."""
        text = f"{self.device_name}, {'bfloat16' if self.uses_bfloat16(precision) else 'float32'}"
        return text if self.size == 1 else f"{text}, {self.size} processes"


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Take part in training: alone, or with the other processes that ``torchrun`` has started.

    Args:
        device: one of :data:`DEVICES`; ``auto`` takes a GPU where PyTorch sees one.

    Raises:
        ConfigError: where there is no GPU for this process.
    """
    launched = distributed.is_available() and distributed.is_torchelastic_launched()
    rank, local, size = (
        int(os.environ[name]) if launched else default
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not gpus):
        place = torch.device("cpu")
    elif local < gpus:
        place = torch.device("cuda", local)
        _prepare_gpu(place)
    else:
        there = "no GPU" if not gpus else f"{gpus} GPUs, and each process of this machine needs its own"
        raise ConfigError(f"--device {device}: PyTorch sees {there}")
    if size > 1:
        distributed.init_process_group("gloo" if place.type == "cpu" else "nccl")
    yield World(place, rank, size)
    if size > 1:  # not after an error: it would wait for the others, which torchrun ends
        distributed.destroy_process_group()


def _prepare_gpu(device: torch.device) -> None:
    """The same sums in every run, in float32 where float32 is asked for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts; see its documentation
    torch.cuda.set_device(device)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
