"""Define the schemas of `train:`, `evaluate:` and the keys that all transfer strategies share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from fmeco.errors import clean
from fmeco.plugins.keys import Doc, Ge, Gt, Le, Lt

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Train(BaseModel):
    """Configure training: its length, batches, device, precision and checkpoints."""

    model_config = STRICT
    epochs: Annotated[
        float | None,
        Doc("passes over the training data; null = set by steps or budget; without them, the command's default"),
        Gt(0),
    ] = None
    steps: Annotated[int | None, Doc("number of optimizer steps, instead of epochs"), Gt(0)] = None
    budget: Annotated[str | None, Doc("time to train, such as 90s, 10m or 2h, instead of epochs")] = None
    batch_size: Annotated[
        int | Literal["auto", "full"],
        Doc(
            "samples per optimizer step, over all ranks and micro-batches; full = all training samples (gradient descent); "
            "auto = a fifth of the training samples, but at least 16 and at most 64"
        ),
    ] = "auto"
    lr_for_batch: Annotated[
        int | None,
        Doc(
            "batch size for which optimizer.lr is meant; the learning rate is multiplied by batch_size / lr_for_batch "
            "(https://arxiv.org/abs/1706.02677 section 2.1); null = do not scale it"
        ),
        Gt(0),
    ] = None
    micro_batch: Annotated[
        int | Literal["auto"],
        Doc(
            "samples per forward pass of a rank; gradients are summed until batch_size samples are done; auto = batch_size, at most 256"
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Doc("device to train on; auto = cuda if available, else mps, else cpu")
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Doc(
            "precision of the forward and backward pass; weights stay fp32. auto = bf16 on a GPU that supports it. On a CPU, "
            "fp32, or bf16 if the run takes two minutes or longer and a short benchmark finds bf16 1.25 times as fast"
        ),
    ] = "auto"
    channels_last: Annotated[
        bool | Literal["auto"], Doc("use torch's channels_last memory format; auto = for images")
    ] = "auto"
    compile: Annotated[bool, Doc("compile the backbone with torch.compile")] = False
    sync_batch_norm: Annotated[bool, Doc("compute batch-norm statistics over all ranks; needs GPUs")] = False
    workers: Annotated[
        int | Literal["auto"],
        Doc(
            "loader processes; 0 = read with threads between training steps; auto = 0 on a CPU, and for a split that "
            "is kept on the device; otherwise a number chosen by a short benchmark"
        ),
    ] = "auto"
    cache: Annotated[
        str,
        Doc(
            "disk space, such as 20GB, to cache decoded samples for later epochs and runs; off = no cache; "
            "auto = half of the free memory or a quarter of the free disk, whichever is smaller"
        ),
    ] = "auto"
    clip_norm: Annotated[float | None, Doc("clip the gradient norm to this value; null = no clipping"), Gt(0)] = None
    ema: Annotated[
        float | None,
        Doc(
            "decay of an exponential moving average (EMA) of the weights; this average is evaluated and saved instead of the "
            "weights. null = off"
        ),
        Gt(0),
        Lt(1),
    ] = None
    early_stop: Annotated[
        int | None, Doc("stop after this many evaluations without a better metric; null = never"), Gt(0)
    ] = None
    sampler: Annotated[
        Literal["shuffle", "balanced"],
        Doc("order of samples; shuffle = each sample once per epoch; balanced = every class equally often"),
    ] = "shuffle"
    label_fraction: Annotated[
        float,
        Doc(
            "share of each class's training samples to train on; the samples' names and the seed decide which; a larger share contains "
            "all samples of a smaller one"
        ),
        Gt(0),
        Le(1),
    ] = 1.0
    save_every: Annotated[
        int | Literal["auto"],
        Doc("steps between checkpoints; auto = at evaluations, if the last checkpoint is more than 20 seconds old"),
    ] = "auto"
    keep: Annotated[int, Doc("number of newest checkpoints to keep besides the best"), Ge(1)] = 2
    log_every: Annotated[int, Doc("steps between lines of metrics.jsonl"), Ge(1)] = 10
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        Doc("if the loss or gradient is not finite: stop the run, or skip the step (20 skips in a row stop the run)"),
    ] = "stop"
    on_bad_sample: Annotated[
        Literal["error", "skip"], Doc("if a sample cannot be read: stop with an error, or skip the sample")
    ] = "error"
    tensorboard: Annotated[
        bool | Literal["auto"], Doc("write TensorBoard events; auto = if tensorboard is installed")
    ] = "auto"

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
    """Configure evaluations on the validation split, and the choice of the best checkpoint."""

    model_config = STRICT
    every: Annotated[float, Doc("epochs between evaluations; the last step is always evaluated"), Gt(0)] = 1
    best: Annotated[
        str | None,
        Doc(
            "metric used to select the best checkpoint; null = that of the first probe, or without probes the objective's first"
        ),
    ] = None
    probes: Annotated[
        list[Literal["knn", "linear"]] | None,
        Doc(
            "probes that classify the backbone's vectors at each evaluation: knn = by nearest neighbours, linear = by a "
            "linear head; the first one selects the best checkpoint. Data without classes is probed by matching two views "
            "of each sample. null = the objective's default, [] = none"
        ),
    ] = None
    batch_size: Annotated[
        int | None, Doc("samples per forward pass of an evaluation; null = twice the micro-batch"), Gt(0)
    ] = None
    health: Annotated[
        Literal["stop", "warn", "off"],
        Doc("if an evaluation shows that the representation has collapsed: stop the run, warn, or do not check"),
    ] = "stop"


class Carry(BaseModel):
    """Configure the keys of `transfer:` that all strategies have."""

    model_config = STRICT
    head: Annotated[
        Literal["auto", "fresh"],
        Doc("auto = copy the head's rows of classes that both tasks have, matched by name; fresh = start a new head"),
    ] = "auto"
    allow_partial: Annotated[
        bool, Doc("load the tensors of the source that fit, and leave the others as initialised, instead of an error")
    ] = False
    prefix: Annotated[
        str | None,
        Doc("prefix of the backbone's tensor names in the source, such as student.backbone.; null = find it"),
    ] = None
    rename: Annotated[
        dict[str, str],
        Doc(
            "changes the source's tensor names before they are compared: {regular expression: replacement}, applied in order "
            "to all names; groups work, as in {'^_blocks[.](\\d+)': 'blocks.\\1'}"
        ),
    ] = {}
    match: Annotated[
        Literal["names", "order"],
        Doc(
            "how tensors of the source are paired with the backbone's: by names, or by the order in which both list them, "
            "if all shapes agree"
        ),
    ] = "names"
    freeze: Annotated[list[str], Doc("names or patterns of parameters to freeze, such as [conv1, 'layer1.*']")] = []
    cross_modality: Annotated[
        bool,
        Doc("allow weights that were trained on data of another modality, such as on images for audio"),
    ] = False
    batch_norm: Annotated[
        Literal["frozen", "adapt"],
        Doc(
            "running statistics of frozen batch norms: frozen = keep and use them; adapt = update them on the new data"
        ),
    ] = "frozen"
    views: Annotated[
        int | None,
        Doc(
            "augmented views per sample whose frozen features are computed once and reused in every epoch; 0 = compute "
            "features anew in every epoch; null = 3 if the whole backbone is frozen, and unaugmented samples if augment is none"
        ),
        Ge(0),
    ] = None

    @field_validator("rename")
    @classmethod
    def _rules(cls, value: dict[str, str]) -> dict[str, str]:
        for rule, replacement in value.items():
            try:
                re.compile(rule).sub(replacement, "")
            except (re.error, IndexError, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"'{clean(rule, 120)}' with the replacement '{clean(replacement, 120)}' is no valid rule: {clean(error)}"
                ) from None
        return value


SECTIONS: dict[str, type[BaseModel]] = {"train": Train, "evaluate": Evaluate}


def seconds(budget: str) -> float:
    """Convert a time such as '90s', '10m' or '1.5h' to seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", budget)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"budget must be a time such as 90s, 10m or 2h, not '{clean(budget)}'")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def size(text: str) -> float:
    """Convert a size such as '500MB' or '20GB' to bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB|TB)\s*", text)
    if match is None:
        raise ValueError(f"cache must be auto, off, or a size such as 20GB, not '{clean(text)}'")
    return float(match[1]) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[match[2]]
