"""Time training steps, and measure whether bf16 trains a model faster than fp32 on this machine."""

from __future__ import annotations

import statistics
import time

import torch

from fmeco.core.data import Batch
from fmeco.core.model import Objective
from fmeco.nn.precision import autocast

SHORT_RUN = 120.0  # seconds; shorter runs are not benchmarked

GAIN = 1.25  # bf16 is used if it is this many times as fast as fp32

SHARE, AT_MOST = 0.02, 5.0  # time for the benchmark: share of the run, and seconds

UNTIMED, TIMED = 3, 5  # steps before a steady one is timed: the first calls of cuDNN choose kernels and take memory


def step_seconds(objective: Objective, batch: Batch, device: torch.device, precision: str) -> float:
    """Time one forward and backward pass, in seconds.

    Weights, buffers and random generators are left as they were.
    """
    buffers = [buffer.clone() for buffer in objective.buffers()]
    training = objective.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        objective.train()
        _wait(device)
        began = time.monotonic()
        with autocast(device, precision):
            loss = objective(batch, "loss")
        if loss.sum.requires_grad:
            loss.sum.backward()
        _wait(device)
        took = time.monotonic() - began
    objective.train(training)
    objective.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(objective.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return took


def steady_step_seconds(objective: Objective, batch: Batch, device: torch.device, precision: str) -> float:
    """Time a forward and backward pass as they are after the first few steps of a run, in seconds.

    batch: of the run's own size, as small batches leave a GPU idle and cost more per sample.
    """
    took = [step_seconds(objective, batch, device, precision) for _ in range(UNTIMED + TIMED)]
    return statistics.median(took[UNTIMED:])


def faster_precision(
    objective: Objective, batch: Batch, device: torch.device, samples: float, limit: float
) -> tuple[str, float]:
    """Benchmark fp32 and bf16. Returns the faster one, and how many times as fast as fp32 bf16 is.

    The factor is 1 if bf16 was not tried: the run is short, or the CPU has no bf16 kernels.

    batch: a few samples.
    samples: samples that the whole run trains on.
    limit: seconds of the run; inf if its length is given in steps.
    """
    if not has_bf16_kernels():  # a single bf16 pass of a large model could then take an hour
        return "fp32", 1.0

    def once(precision: str) -> float:
        return step_seconds(objective, batch, device, precision)

    run = min(once("fp32") / len(batch) * samples, limit)
    if run < SHORT_RUN:
        return "fp32", 1.0
    began = time.monotonic()
    once("bf16")  # warm-up: the first pass of each precision prepares its kernels
    ratios: list[float] = []
    while not ratios or time.monotonic() - began < min(AT_MOST, SHARE * run) / 2:
        ratios.append(once("fp32") / once("bf16"))
    gain = statistics.median(ratios)
    return ("bf16" if gain > GAIN else "fp32"), gain


def has_bf16_kernels() -> bool:
    """Whether torch computes in bf16 on this CPU, if only by converting.

    Without such kernels bf16 is never faster.
    """
    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") != "x86_64" or any(
        capabilities.get(name) for name in ("avx512_bw", "avx_ne_convert")
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
