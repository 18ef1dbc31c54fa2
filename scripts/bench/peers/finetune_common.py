"""Provide the job, the clock and the check of loaded weights to the peers of finetune.py and results_foundation.py."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HEADS = ("fc.", "classifier.")  # of the models of all tasks


def read_job() -> dict[str, Any]:
    """Read the job that finetune.py wrote."""
    return json.loads(Path(sys.argv[1]).read_text())


class Clock:
    """Measure training time, from the creation of the clock. `mark` ends an epoch."""

    def __init__(self) -> None:
        self.wall, self.cpu = [time.perf_counter()], [time.process_time()]

    def mark(self) -> None:
        """End an epoch."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def stop(self) -> dict[str, Any]:
        """Return wall seconds and processor seconds, of all and of each epoch."""
        wall, cpu = ([after - before for before, after in itertools.pairwise(each)] for each in (self.wall, self.cpu))
        seconds = time.perf_counter() - self.wall[0]
        return {"seconds": seconds, "cpu": time.process_time(), "epoch_wall": wall, "epoch_cpu": cpu}


def source_weights(job: dict[str, Any]) -> dict[str, Tensor]:
    """Read the weights of the source."""
    return load_file(job["weights"])


def check_loaded(loaded: Iterable[tuple[str, Tensor]], weights: dict[str, Tensor]) -> None:
    """Exit unless every tensor except the head's equals the source's, bit for bit, and none is missing."""
    without_head = {name: tensor for name, tensor in loaded if not name.startswith(HEADS)}
    wrong = sorted(without_head.keys() ^ weights.keys())
    wrong += [
        name for name in without_head.keys() & weights.keys() if not torch.equal(without_head[name], weights[name])
    ]
    if wrong:
        sys.exit(f"not the source's weights: {', '.join(wrong)}")
    print(f"{len(without_head)} of {len(weights)} tensors are the source's", file=sys.stderr)


def write_result(job: dict[str, Any], result: dict[str, Any], accuracy: float, correct: dict[str, bool]) -> None:
    """Write a peer's result.

    correct: whether each test image was predicted correctly, by its path.
    """
    result |= {"accuracy": accuracy, "correct": [int(correct[name]) for name in sorted(correct)]}
    (Path(job["folder"]) / "result.json").write_text(json.dumps(result))
