"""Connect ranks: processes that train one model together, each on its part of every step.

They are started by torchrun or --nproc. The loop makes every decision from numbers that all ranks share: rows and sums
are gathered, clocks and stop signals agreed upon. So no rank waits for one that took another branch.
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

TIMEOUT = timedelta(minutes=30)  # covers the longest wait: for a rank that scans or evaluates alone


@dataclass(frozen=True)
class Ranks:
    """Communicate with the other ranks. With one rank, each method does nothing or returns its input.

    rank: number of this process in the job.
    world: ranks in the job.
    local: number of this process on its machine, which picks the GPU.
    local_world: ranks on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes files and messages."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks, in place and on its own device. Returns it."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def most(self, *numbers: float) -> list[float]:
        """Return the maximum over ranks of each number."""
        if self.world == 1:
            return list(numbers)
        agreed = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
        return agreed.tolist()

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Copy rank 0's values into every rank's tensors."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def gather(self, body: bytes) -> list[bytes]:
        """Return the bytes of every rank, in order of rank."""
        if self.world == 1:
            return [body]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([len(body)]))
        longest = int(max(sizes))
        mine = torch.frombuffer(bytearray(body.ljust(longest, b"\0")), dtype=torch.uint8)
        bodies = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        distributed.all_gather(bodies, mine)
        return [padded.numpy()[: int(size)].tobytes() for padded, size in zip(bodies, sizes, strict=True)]

    def gather_tensor(self, mine: Tensor) -> list[Tensor]:
        """Return the rows (N, ...) of every rank, in order of rank.

        This rank's are `mine` itself, so gradients flow through it.
        """
        if self.world == 1:
            return [mine]
        sizes = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([len(mine)], device=mine.device))
        longest = int(max(sizes))
        padded = mine.new_zeros(longest, *mine.shape[1:])
        padded[: len(mine)] = mine.detach()
        gathered = [torch.empty_like(padded) for _ in range(self.world)]
        distributed.all_gather(gathered, padded)
        return [mine if r == self.rank else x[: int(sizes[r])] for r, x in enumerate(gathered)]

    def gather_rows(self, rows: Mapping[str, Tensor], notes: list[str]) -> tuple[dict[str, Tensor], list[str]]:
        """Concatenate the rows (N, ...) of all ranks, and their notes."""
        if self.world == 1:
            return dict(rows), notes
        mine = safetensors.save({name: x.contiguous() for name, x in rows.items()})
        parts = [safetensors.load(part) for part in self.gather(mine)]
        all_notes = [note for part in self.gather(json.dumps(notes).encode()) for note in json.loads(part)]
        filled = [part for part in parts if part]
        return {name: torch.cat([part[name] for part in filled]) for name in (filled[0] if filled else {})}, all_notes

    def from_first(self, work: Callable[[], str]) -> str:
        """Run `work` on rank 0, and return its result on every rank.

        If it fails, every rank fails: rank 0 raises the FmecoError, and the others Elsewhere, which prints nothing.
        """
        if self.world == 1:
            return work()
        answer, failure = "", None
        if self.first:
            try:
                answer = work()
            except FmecoError as error:
                failure = error
        answers = self.gather(json.dumps([answer, failure.exit_code if failure else 0]).encode())
        if failure is not None:
            raise failure
        answer, code = json.loads(answers[0])
        if code:
            raise Elsewhere(code)
        return str(answer)

    def barrier(self) -> None:
        """Wait until all ranks have reached this point."""
        if self.world > 1:
            distributed.all_reduce(torch.zeros(1))

    def parallel(self, objective: nn.Module, device: torch.device) -> Any:
        """Wrap the objective for training, so that its gradients are the mean over ranks.

        With one rank, or if nothing trains, the objective is returned as it is.
        """
        if self.world == 1 or not any(p.requires_grad for p in objective.parameters()):
            return objective
        ids = [device.index] if device.type == "cuda" else None
        # No sync of buffers in every step: training does not read batch-norm statistics, and rank 0's are
        # broadcast before each evaluation.
        wrap = nn.parallel.DistributedDataParallel
        newer = "forward_sync_buffers" in inspect.signature(wrap).parameters
        buffers: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        return wrap(objective, device_ids=ids, **buffers)


ALONE = Ranks()


@contextlib.contextmanager
def together(device: str) -> Iterator[Ranks]:
    """Connect the ranks of this job within the context, and yield this process's Ranks.

    device: what the run will use. GPUs communicate by NCCL, and CPU tensors by gloo. On a CPU, the ranks of a machine
        share out its cores.

    Raises RankLost if another rank ends or cannot be reached.
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
            "see the error message of that rank; `fmeco resume RUN` continues from the last checkpoint",
        ) from None


def _lost(error: Exception) -> bool:
    """Whether an error means that another rank is gone."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Socket Timeout", "wait timeout", "NCCL", "gloo")
    return isinstance(error, distributed.DistError) or any(sign in text for sign in signs)
