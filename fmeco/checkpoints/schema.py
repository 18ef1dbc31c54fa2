"""Declare what the JSON files of a checkpoint hold, and check them field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmeco.config.explain import explain
from fmeco.core.stored import Count, Size, Stored
from fmeco.errors import CheckpointError, clean

SHOWN = 5  # most problems of a file in a message
HINT = "it was modified, or written by another version of fmeco; copy the checkpoint again from its source"
Dtype = Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


class File(Stored):
    size: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(Stored):
    format: Annotated[int, Ge(1), Le(2**31)]
    parents: list[str]
    files: dict[Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$", max_length=200)], File]


class Named(Stored):
    """Declare the section of a plug-in. Its other keys are checked against the plug-in when the section is used."""

    name: str


class TrainSection(Stored):
    on_bad_sample: Literal["error", "skip"]
    channels_last: bool | Literal["auto"]
    label_fraction: Annotated[float, Ge(0), Le(1)]
    device: str = ""


class EvaluateSection(Stored):
    best: str | None


class Versions(Stored):
    torch: str = ""


class Config(Stored):
    stage: Literal["pretrain", "finetune"]
    seed: Annotated[int, Ge(0), Le(2**31)]
    train: TrainSection
    evaluate: EvaluateSection
    objective: Named
    dataset: Named | None = None
    backbone: Named | None = None


class Input(Stored):
    shape: list[Size]
    dtype: Dtype = "float32"
    scale: float = 1.0
    mean: list[float] = []
    std: list[float] = []
    ragged: bool = False
    offset: Count = 0

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        if len(self.mean) != len(self.std) or (self.mean and (not self.shape or self.shape[0] != len(self.mean))):
            raise ValueError("mean and std need one value for each index of the first dimension of shape")
        return self


class TargetFields(Stored):
    kind: str
    classes: list[str] = []
    counts: list[Count] = []
    mean: float = 0.0
    std: float = 1.0
    missing: Count = 0
    steps: Count = 0


class Preprocessing(Stored):
    """Declare the one key of `preprocessing` that all datasets share. A dataset plug-in declares its own keys as `SPEC`."""

    decode: Annotated[int, Ge(1), Le(2**31)] = 1


class Spec(Stored):
    modality: str
    inputs: dict[str, Input]
    targets: dict[str, TargetFields] = {}
    preprocessing: Preprocessing = Preprocessing()
    reader: str = ""
    sizes: dict[str, Count] = {}
    fingerprint: str = ""


class Transplant(Stored):
    source: str
    share: float
    crossing: str = ""


class Meta(Stored):
    """Declare meta.json in the current format."""

    stage: Literal["pretrain", "finetune"]
    name: str
    step: Count
    epoch: float
    config: Config
    spec: Spec
    parameters: Count
    metrics: dict[str, float]
    needs: list[str]
    licence: str | None
    precision: Literal["fp32", "bf16", "fp16"]
    transplant: Transplant | None
    versions: Versions
    class_rows: dict[str, list[str]] = {}
    aliases: dict[str, str] = {}


class Spent(Stored):
    data: float
    evaluate: float
    save: float


class RunState(Stored):
    """Declare the progress of a run: the fields of training's State. A test holds their names and defaults equal."""

    model_config = ConfigDict(extra="forbid")

    step: Count = 0
    total: Count = 0
    phase: Count = 0
    phase_start: float = 0.0
    phase_history: Count = 0
    seconds: float = 0.0
    spent: Spent = Spent(data=0.0, evaluate=0.0, save=0.0)
    samples: Count = 0
    history: list[float] = []
    best: float | None = None
    best_step: Count = 0
    kept: Annotated[list[float], Field(min_length=1, max_length=2)] | None = None
    source: float | None = None
    source_step: Count | None = None
    waited: Count = 0
    bad_samples: list[str] = []
    window: list[Annotated[list[float], Field(min_length=3, max_length=3)]] = []
    finished: bool = False


class Trainer(Stored):
    """Declare trainer.json: what only resuming needs."""

    state: RunState
    optimizer: dict[str, str | int | float | bool | None]
    metrics_size: Count
    threads: Count
    ranks: Count
    scaler: dict[str, Any] | None
    order: list[str] | None = None


def check(schema: type[BaseModel], value: Any, file: Path, field: str = "") -> None:
    """Check a JSON value against a schema. Raises CheckpointError that names each wrong field.

    file: that holds the value.
    field: of the file, if the value is not the whole of it.
    """
    try:
        schema.model_validate(value)
    except ValidationError as error:
        lines = []
        for place, message in explain(error, schema, value if isinstance(value, dict) else {}, ()):
            key = ".".join(clean(part, 80) for part in (*([field] if field else []), *place))
            lines.append(f"{key}: {message}" if key else message)
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise CheckpointError("\n".join([f"{clean(file)} is not valid:", *lines[:SHOWN], *more]), HINT) from None
