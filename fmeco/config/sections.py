"""The sections that no plug-in owns: train, evaluate, and what every transfer strategy has."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from fmeco.errors import clean
from fmeco.plugins.keys import Doc, Ge, Gt, Le, Lt

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Train(BaseModel):
    """How long and how a run trains."""

    model_config = STRICT
    epochs: Annotated[
        float | None,
        Doc("passes over the training data; null = steps, budget, or the stage's default"),
        Gt(0),
    ] = None
    steps: Annotated[int | None, Doc("optimizer steps, instead of epochs"), Gt(0)] = None
    budget: Annotated[str | None, Doc("a time such as 90s, 10m or 2h: train as many steps as fit")] = None
    batch_size: Annotated[
        int | Literal["auto", "full"],
        Doc(
            "samples per optimizer step, over all ranks and micro-batches; full = gradient descent; "
            "auto = 64, or fewer (down to 16) where an epoch would have less than five steps"
        ),
    ] = "auto"
    lr_for_batch: Annotated[
        int | None,
        Doc(
            "the batch size that optimizer.lr is meant for: a run takes the rate times batch_size / lr_for_batch "
            "(https://arxiv.org/abs/1706.02677 section 2.1); null = the rate as it is"
        ),
        Gt(0),
    ] = None
    micro_batch: Annotated[int | Literal["auto"], Doc("samples per forward pass; auto = batch_size, at most 256")] = (
        "auto"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Doc(
            "of the forward and backward pass; weights stay fp32. auto = bf16 on a GPU that has it; on a CPU, for runs of "
            "two minutes and more, whichever is faster by a short measurement"
        ),
    ] = "auto"
    channels_last: Annotated[bool | Literal["auto"], Doc("memory format of image models")] = "auto"
    compile: Annotated[bool, Doc("torch.compile the backbone")] = False
    sync_batch_norm: Annotated[bool, Doc("batch norm over the samples of all ranks; needs GPUs")] = False
    workers: Annotated[
        int | Literal["auto"],
        Doc(
            "loader processes; 0 = threads, between steps; auto = 0 on a CPU and for data that fits on the device, "
            "else as many as a measurement says"
        ),
    ] = "auto"
    cache: Annotated[
        str,
        Doc(
            "disk space for decoded samples, such as 20GB, so that later epochs and runs decode nothing; off; "
            "auto = half of the free memory, at most a quarter of the free disk"
        ),
    ] = "auto"
    clip_norm: Annotated[float | None, Doc("largest gradient norm; null = no clipping"), Gt(0)] = None
    ema: Annotated[
        float | None,
        Doc("decay of an exponential moving average of the weights, which is then evaluated and saved"),
        Gt(0),
        Lt(1),
    ] = None
    early_stop: Annotated[int | None, Doc("stop after this many evaluations without a better metric"), Gt(0)] = None
    sampler: Annotated[Literal["shuffle", "balanced"], Doc("balanced = every class equally often")] = "shuffle"
    label_fraction: Annotated[
        float,
        Doc(
            "share of each class of the training samples to train on, drawn by name and seed; more keeps what less drew"
        ),
        Gt(0),
        Le(1),
    ] = 1.0
    save_every: Annotated[
        int | Literal["auto"], Doc("steps between checkpoints; auto = at evaluations, 20 seconds apart or more")
    ] = "auto"
    keep: Annotated[int, Doc("newest checkpoints to keep beside the best"), Ge(1)] = 2
    log_every: Annotated[int, Doc("steps between lines of metrics.jsonl"), Ge(1)] = 10
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        Doc("when the loss or gradient is not finite: stop the run, or skip the step (20 in a row stop it)"),
    ] = "stop"
    on_bad_sample: Annotated[Literal["error", "skip"], Doc("when a sample cannot be read")] = "error"
    tensorboard: Annotated[bool | Literal["auto"], Doc("write TensorBoard events; auto = if it is installed")] = "auto"

    @field_validator("steps", "budget")  # after epochs, in this order
    @classmethod
    def _one_length(cls, value: Any, info: ValidationInfo) -> Any:
        lengths = [key for key in ("epochs", "steps") if info.data.get(key) is not None]
        if value is not None and lengths:
            raise ValueError(f"give one of epochs, steps and budget, not {lengths[0]} and {info.field_name}")
        return value

    @field_validator("batch_size", "micro_batch", "workers", "save_every")
    @classmethod
    def _positive(cls, value: int | str, info: ValidationInfo) -> int | str:
        if isinstance(value, int) and value < (info.field_name != "workers"):
            raise ValueError(f"{info.field_name} must be positive, not {value}")
        return value

    @field_validator("budget")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        if value is not None:
            seconds(value)
        return value

    @field_validator("cache")
    @classmethod
    def _size(cls, value: str) -> str:
        if value not in ("auto", "off"):
            size(value)
        return value


class Evaluate(BaseModel):
    """When a run evaluates on the validation split, and which metric is its best."""

    model_config = STRICT
    every: Annotated[float, Doc("epochs between evaluations; the last step always is one"), Gt(0)] = 1
    best: Annotated[str | None, Doc("metric that picks the best checkpoint; null = the objective's first")] = None
    probes: Annotated[
        list[Literal["knn", "linear"]] | None,
        Doc(
            "how well the backbone's vectors tell classes: by the nearest others, by a linear head; the first picks the best "
            "checkpoint. Without classes: whether a view finds its other view. null = the objective's, [] = none"
        ),
    ] = None
    batch_size: Annotated[int | None, Doc("null = twice the micro-batch"), Gt(0)] = None
    health: Annotated[
        Literal["stop", "warn", "off"], Doc("what to do when an evaluation shows that the representation has collapsed")
    ] = "stop"


class Carry(BaseModel):
    """Keys of `transfer:` that every strategy has."""

    model_config = STRICT
    head: Annotated[
        Literal["auto", "fresh"], Doc("auto = rows of classes that both tasks have are carried over by name")
    ] = "auto"
    allow_partial: Annotated[bool, Doc("load what fits of the source, and leave the rest as initialised")] = False
    prefix: Annotated[
        str | None,
        Doc(
            "what the names of the backbone's tensors begin with in the source, such as student.backbone.; null finds it"
        ),
    ] = None
    freeze: Annotated[
        list[str], Doc("names or patterns of parameters that do not train, such as [conv1, 'layer1.*']")
    ] = []
    cross_modality: Annotated[
        bool,
        Doc("start from weights that were made with data of another modality, such as images for audio; else refused"),
    ] = False
    batch_norm: Annotated[
        Literal["frozen", "adapt"],
        Doc("frozen batch norms keep their running statistics and use them, or adapt them to the new data"),
    ] = "frozen"
    views: Annotated[
        int | None,
        Doc(
            "augmented views of each sample to compute once, while the backbone is frozen, and train on in every epoch; "
            "0 = compute features anew in every epoch; null = 3, or the plain samples where augment is none"
        ),
        Ge(0),
    ] = None


SECTIONS: dict[str, type[BaseModel]] = {"train": Train, "evaluate": Evaluate}


def seconds(budget: str) -> float:
    """'90s', '10m', '1.5h' -> seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", budget)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"budget must be a time such as 90s, 10m or 2h, not '{clean(budget)}'")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def size(text: str) -> float:
    """'500MB', '20GB' -> bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB|TB)\s*", text)
    if match is None:
        raise ValueError(f"cache must be auto, off, or a size such as 20GB, not '{clean(text)}'")
    return float(match[1]) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[match[2]]
