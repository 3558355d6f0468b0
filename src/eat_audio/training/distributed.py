"""Train with several processes as if they were one.

`torchrun` starts the processes. Rank r of R takes every R-th micro-batch, so R processes do what
one does with R times the accumulation: the same clips, the same random numbers, the same losses.

    ddp     every process holds the full model; gradients are averaged
    fsdp    every process holds a slice of each weight, gradient and moment, and gathers a block
            when it is computed (FSDP2), for models that would not fit otherwise

Checkpoints hold full tensors either way, so a run may be resumed with the other one.
"""

import atexit
import itertools
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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

TIMEOUT = timedelta(minutes=10)
"""How long a process waits in one exchange for others that are alive but busy."""
PULSE, SILENCE = 3.0, 40.0
"""Seconds between two signs of life of a process, and without one until it is given up."""
ENDED = "ended"
"""The last sign of a process that ends on purpose."""
LOST = re.compile("gloo|nccl|connection|peer|timed out|store", re.IGNORECASE)
"""Parts of error messages when another process is gone."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run, all of which must call its methods together."""

    rank: int = 0
    ranks: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages for all."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes."""
        if self.ranks == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.ranks

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process, by gloo: no GPU is waited for."""
        if self.ranks == 1:
            return flag
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def broadcast(self, number: int, *, device: torch.device) -> int:
        """Return the number of the main process."""
        if self.ranks == 1:
            return number
        value = torch.tensor(number, dtype=torch.int64, device=device)
        dist.broadcast(value, src=0)
        return int(value.item())

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.ranks > 1:
            dist.barrier()

    def wrap(self, objective: Any) -> Callable[..., dict[str, Tensor]]:
        """Return the callable whose gradients are averaged over the processes."""
        if self.ranks == 1 or isinstance(objective, FSDPModule):
            return objective
        return DistributedDataParallel(objective, gradient_as_bucket_view=True)

    @contextmanager
    def reporting_lost_peers(self) -> Iterator[None]:
        """Raise EatError instead of RuntimeError if another process is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.ranks == 1 or not LOST.search(str(error)):
                raise
            reason = str(error).splitlines()[0]
            raise EatError(
                f"process {self.rank} of {self.ranks} has lost another one ({reason[:200]}); "
                "--resume goes on from the last checkpoint"
            ) from error


SINGLE_PROCESS = ProcessGroup()


def init_process_group(device: torch.device) -> ProcessGroup:
    """Return the process group that torchrun has started, of GPUs (NCCL) or CPUs (gloo)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        _pulse.start(dist.get_rank(), dist.get_world_size())
    return ProcessGroup(dist.get_rank(), dist.get_world_size())


class _Pulse:
    """Publish signs of life of this process to the others, and end it if another is silent.

    A stopped process, or a machine without power, closes no connection: the others would wait
    for it until `TIMEOUT`. One that is only slow (it writes a checkpoint, say) shows signs of life
    all the same. The main process watches all others, and they watch the main process.
    """

    def __init__(self) -> None:
        self.store: Any = None
        self.rank = 0
        self.lock, self.has_ended = threading.Lock(), False
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.key = f"eat_audio/pulse/{attempt}"

    def start(self, rank: int, ranks: int) -> None:
        """Begin, in a thread with a connection of its own to the store."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
        self.rank = rank
        watched = list(range(1, ranks)) if rank == 0 else [0]
        threading.Thread(target=self._watch, args=(rank, watched), daemon=True).start()
        atexit.register(self.end)

    def end(self) -> None:
        """Publish, as the last sign of life, that this process ends on purpose."""
        with self.lock:
            self.has_ended = True
            if self.store is not None:
                with suppress(RuntimeError):  # the store went with the group
                    self.store.set(f"{self.key}/{self.rank}", ENDED)

    def _watch(self, rank: int, watched: list[int]) -> None:
        """Count the own beats during which another process shows no sign of life.

        Beats, not seconds: a pause of all processes at once counts against none of them.
        """
        keys = [f"{self.key}/{other}" for other in watched]
        process = f"process {os.getpid()} on {socket.gethostname()}"
        last: list[str] = []
        silent = [0] * len(watched)
        for beat in itertools.count():
            try:
                with self.lock:
                    if self.has_ended:  # nothing may follow that sign
                        return
                    self.store.set(f"{self.key}/{rank}", f"{beat} {process}")
                signs = self.store.multi_get(keys) if self.store.check(keys) else []
            except RuntimeError:  # the store went with the group
                return
            signs = [sign.decode() for sign in signs]
            for number, sign in enumerate(signs if last else []):
                unchanged = sign == last[number] != ENDED
                silent[number] = silent[number] + 1 if unchanged else 0
                if silent[number] * PULSE > SILENCE:
                    print(
                        f"eat: rank {watched[number]} ({sign.partition(' ')[2]}) has shown no sign "
                        f"of life for {SILENCE:.0f} s; rank {rank} ends; --resume goes on from "
                        "the last checkpoint",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(2)
            last = signs
            time.sleep(PULSE)


_pulse = _Pulse()


def exit_process(code: int) -> NoReturn:
    """Flush the output and end a process without the tear-down, in which gloo may abort."""
    _pulse.end()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def apply_fsdp(objective: nn.Module, process_group: ProcessGroup, *, how: Parallel) -> None:
    """Slice a model over the process group, block by block, if `how` is "fsdp"."""
    if process_group.ranks == 1 or how == "ddp":
        return
    # Some outputs of blocks are views, which nothing changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(next(objective.parameters()).device.type, (process_group.ranks,))
    for module in objective.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)


def grad_sync(forward: Any, *, when: bool) -> AbstractContextManager[Any]:
    """Average gradients over processes only `when` it is the last micro-batch of a step."""
    if isinstance(forward, DistributedDataParallel) and not when:
        return forward.no_sync()
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(when)
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor in full; all processes must call this for a sliced one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(full: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor on the device, and in the slices, of another one."""
    full = full.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements)
    return full
