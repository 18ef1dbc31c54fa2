"""What the peers of finetune.py share: the job, the clock, and the proof that the source's weights are there."""

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


def read_job() -> dict[str, Any]:
    return json.loads(Path(sys.argv[1]).read_text())


class Clock:
    """Starts with training; `mark` ends an epoch."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), [time.process_time()]

    def mark(self) -> None:
        self.cpu.append(time.process_time())

    def stop(self) -> dict[str, Any]:
        epochs = [after - before for before, after in itertools.pairwise(self.cpu)]
        return {"seconds": time.perf_counter() - self.wall, "cpu": time.process_time(), "epoch_cpu": epochs}


def source_weights(job: dict[str, Any]) -> dict[str, Tensor]:
    return load_file(job["weights"])


def check_loaded(found: Iterable[tuple[str, Tensor]], weights: dict[str, Tensor]) -> None:
    """Every tensor of the source is where it belongs, to the bit, and everything but the head is one of them."""
    here = {name: tensor for name, tensor in found if not name.startswith("fc.")}
    wrong = sorted(here.keys() ^ weights.keys())
    wrong += [name for name in here.keys() & weights.keys() if not torch.equal(here[name], weights[name])]
    if wrong:
        sys.exit(f"not the source's weights: {', '.join(wrong)}")
    print(f"{len(here)} of {len(weights)} tensors are the source's", file=sys.stderr)


def write_result(job: dict[str, Any], found: dict[str, Any], accuracy: float, correct: dict[str, bool]) -> None:
    """correct: by the file's path."""
    found |= {"accuracy": accuracy, "correct": [int(correct[name]) for name in sorted(correct)]}
    (Path(job["folder"]) / "result.json").write_text(json.dumps(found))
