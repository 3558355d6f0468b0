"""Many processes -> one team that trains as if it were one process.

`torchrun` starts the processes and tells each its rank; alone, a process is a team of one and
nothing here costs it anything. Rank r of R takes every R-th micro-batch, so R processes do what
one does with R times the accumulation: the same clips, the same draws, the same losses.

Two ways to share the work, after which training goes on as before:

    ddp     every process holds the whole model; gradients are averaged
    fsdp    every process holds a slice of each weight, gradient and moment, and gathers a block
            when it is computed (FSDP2), for models that would not fit otherwise

Checkpoints hold whole tensors whichever way was taken, so a run may go on with another one.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from eat_audio.errors import EatError

Parallel = Literal["ddp", "fsdp"]

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others, which may be stopped, or far away and lost."""
LOST = ("gloo", "nccl", "connection", "peer", "timed out", "store")
"""What the words of an error are about when another process is gone."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    ranks: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The average over processes, which all of them have to ask for."""
        if self.ranks == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.ranks

    def any(self, wish: bool, *, device: torch.device) -> bool:
        """Whether a process has this wish; all of them have to ask."""
        if self.ranks == 1:
            return wish
        wishes = torch.tensor(float(wish), device=device)
        dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        return bool(wishes.item())

    def same(self, number: int, *, device: torch.device) -> int:
        """The number that the leading process has; all of them have to ask."""
        if self.ranks == 1:
            return number
        told = torch.tensor(number, dtype=torch.int64, device=device)
        dist.broadcast(told, src=0)
        return int(told.item())

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.ranks > 1:
            dist.barrier()

    def wrap(self, objective: Any) -> Callable[..., dict[str, Tensor]]:
        """What to call for the losses, so that gradients become those of the team."""
        if self.ranks == 1 or isinstance(objective, FSDPModule):
            return objective
        return DistributedDataParallel(objective)

    @contextmanager
    def working(self) -> Iterator[None]:
        """While working together, the loss of another process is said in one sentence.

        Raises:
            EatError: Another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            words = str(error).lower()
            if self.ranks == 1 or not any(word in words for word in LOST):
                raise
            reason = str(error).splitlines()[0]
            raise EatError(
                f"process {self.rank} of {self.ranks} has lost another one ({reason[:200]}); "
                "--resume goes on from the last checkpoint"
            ) from error


ALONE = ProcessGroup()


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join(device: torch.device) -> ProcessGroup:
    """The team that torchrun has started, or a team of one; may be asked for again.

    Args:
        device: What this process trains on: a GPU talks over NCCL, a CPU over gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        how = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(how, timeout=PATIENCE)
    return ProcessGroup(dist.get_rank(), dist.get_world_size())


def leave(code: int) -> NoReturn:
    """End a process of a team, after all that was said is written.

    Without the interpreter's own tear-down: gloo's threads abort in it now and then after a run
    that went well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def share(objective: nn.Module, team: ProcessGroup, *, how: Parallel) -> None:
    """Slice a model over the team, block by block, if that is how the work is shared."""
    if team.ranks == 1 or how == "ddp":
        return
    # Outputs of blocks are views here and there, but nothing is ever added to them in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(next(objective.parameters()).device.type, (team.ranks,))
    for module in objective.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)


def grad_sync(forward: Any, *, when: bool) -> AbstractContextManager[Any]:
    """Gradients go round the team only when it is time: at the last micro-batch of a step."""
    if isinstance(forward, DistributedDataParallel) and not when:
        return forward.no_sync()
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(when)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full, from its slices if it is sliced; all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sliced(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor as another one lies: on its device, in its slices."""
    full = full.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements)
    return full
