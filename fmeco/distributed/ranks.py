"""Ranks: the processes that train one model together, each on its part of every step. torchrun starts them, or --nproc.

All decisions of the loop are made from numbers that every rank has: rows and sums are gathered, clocks and signals
agreed upon, so that no rank waits for one that went another way.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from safetensors import torch as safetensors
from torch import Tensor, nn

from fmeco.distributed import launch
from fmeco.errors import Elsewhere, FmecoError, RankLost

TIMEOUT = timedelta(minutes=30)  # for the slowest thing that ranks wait for: one of them scanning or evaluating alone


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. Alone, every method does nothing or gives back what it got."""

    rank: int = 0
    world: int = 1
    local: int = 0  # the place on this machine, which picks the GPU
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place, where the tensor lies."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def most(self, *numbers: float) -> list[float]:
        """The largest of each number over ranks."""
        if self.world == 1:
            return list(numbers)
        agreed = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
        return agreed.tolist()

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Rank 0's values into every rank's tensors."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def gather(self, body: bytes) -> list[bytes]:
        """Every rank's bytes, in order of rank."""
        if self.world == 1:
            return [body]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([len(body)]))
        longest = int(max(sizes))
        mine = torch.frombuffer(bytearray(body.ljust(longest, b"\0")), dtype=torch.uint8)
        bodies = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        distributed.all_gather(bodies, mine)
        return [one.numpy()[: int(size)].tobytes() for one, size in zip(bodies, sizes, strict=True)]

    def gather_tensor(self, mine: Tensor) -> list[Tensor]:
        """Every rank's rows (N, ...), in order of rank; this rank's are `mine` itself, through which gradients flow."""
        if self.world == 1:
            return [mine]
        sizes = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([len(mine)], device=mine.device))
        longest = int(max(sizes))
        padded = mine.new_zeros(longest, *mine.shape[1:])
        padded[: len(mine)] = mine.detach()
        found = [torch.empty_like(padded) for _ in range(self.world)]
        distributed.all_gather(found, padded)
        return [mine if r == self.rank else x[: int(sizes[r])] for r, x in enumerate(found)]

    def gather_rows(self, rows: Mapping[str, Tensor], notes: list[str]) -> tuple[dict[str, Tensor], list[str]]:
        """Rows (N, ...) of all ranks, one below the other, and the notes of all."""
        if self.world == 1:
            return dict(rows), notes
        mine = safetensors.save({name: x.contiguous() for name, x in rows.items()})
        parts = [safetensors.load(part) for part in self.gather(mine)]
        said = [note for part in self.gather(json.dumps(notes).encode()) for note in json.loads(part)]
        filled = [part for part in parts if part]
        return {name: torch.cat([part[name] for part in filled]) for name in (filled[0] if filled else {})}, said

    def from_first(self, work: Callable[[], str]) -> str:
        """What `work` gives on rank 0, on every rank. Where it fails there, every rank fails: rank 0 with the reason, the
        others without a word."""
        if self.world == 1:
            return work()
        answer, failure = "", None
        if self.first:
            try:
                answer = work()
            except FmecoError as error:
                failure = error
        told = self.gather(json.dumps([answer, failure.exit_code if failure else 0]).encode())
        if failure is not None:
            raise failure
        answer, code = json.loads(told[0])
        if code:
            raise Elsewhere(code)
        return str(answer)

    def barrier(self) -> None:
        if self.world > 1:
            distributed.all_reduce(torch.zeros(1))

    def parallel(self, objective: nn.Module, device: torch.device) -> Any:
        """The objective as the loop calls it in training: gradients come out as the mean over ranks."""
        if self.world == 1 or not any(p.requires_grad for p in objective.parameters()):
            return objective
        ids = [device.index] if device.type == "cuda" else None
        # Rank 0's buffers are those that count; training mode does not read the statistics of batch norm.
        wrap = nn.parallel.DistributedDataParallel
        newer = "forward_sync_buffers" in inspect.signature(wrap).parameters
        buffers: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        return wrap(objective, device_ids=ids, **buffers)


ALONE = Ranks()


@contextlib.contextmanager
def together(device: str) -> Iterator[Ranks]:
    """Within, the ranks of this job can talk to each other.

    device: what the run will use; GPUs talk by NCCL, and the CPU by gloo for what the host decides. On a CPU the cores
    are shared out among the ranks of a machine. Raises RankLost when a rank is lost on the way.
    """
    ranks = Ranks(*launch.place())
    if ranks.world == 1:
        yield ALONE
        return
    gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(ranks.local)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks.local_world))
    try:
        if not distributed.is_initialized():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
            atexit.register(distributed.destroy_process_group)
        yield ranks
    except (RuntimeError, ConnectionError) as error:
        if isinstance(error, FmecoError) or not _lost(error):
            raise
        raise RankLost(
            f"rank {ranks.rank}: another rank of this job ended or could not be reached",
            "its own message, if it had one, says why; `fmeco resume RUN` goes on from the last checkpoint",
        ) from None


def _lost(error: Exception) -> bool:
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Socket Timeout", "wait timeout", "NCCL", "gloo")
    return isinstance(error, distributed.DistError) or any(sign in text for sign in signs)
