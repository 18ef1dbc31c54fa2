"""Declare what a dataset plug-in stores in checkpoints: the names of its inputs, and its `preprocessing`.

A checkpoint's spec is checked by these before it is used. Keys that they do not declare are allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from fmeco.core import Count, Ge, Gt, Le, Positive, Size, Stored, listing

Fields = dict[str, Any]  # an object that is checked elsewhere


class _ImageInputs(Stored):
    image: Fields


class _ImagePreprocessing(Stored):
    size: Annotated[int, Gt(0), Le(16_384)]
    resize: Annotated[int, Gt(0), Le(32_768)]
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic"]
    color: Literal["rgb", "gray"]
    fit: Literal["crop", "squash", "letterbox"] = "crop"
    crop_share: Annotated[float, Gt(0), Le(1)] = 1.0
    crop_rounding: Literal["down"] = "down"  # absent: to the nearest even number
    mirror: bool = True
    windows: bool = False
    decode: int = 1
    background: Annotated[list[Annotated[int, Ge(0), Le(255)]], Field(min_length=3, max_length=3)] | None = None
    range: Annotated[list[Annotated[int, Ge(-32_768), Le(65_535)]], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.decode > 1 and self.background is None:
            raise ValueError("background is missing, which decode 2 needs")
        if self.decode == 1 and self.fit != "crop":
            raise ValueError(f"fit is {self.fit}, which decode 1 does not have")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range needs a low and a higher value")
        return self


class Images(Stored):
    """Declare what specs of images hold."""

    inputs: _ImageInputs
    preprocessing: _ImagePreprocessing


_PixelValue = (
    Annotated[int, Ge(0), Le(65_535)]
    | Annotated[list[Annotated[int, Ge(0), Le(255)]], Field(min_length=3, max_length=3)]
)


class _MaskedPreprocessing(_ImagePreprocessing):
    values: Annotated[list[_PixelValue], Field(min_length=2, max_length=254)]
    ignore: list[_PixelValue] = []


class MaskedImages(Stored):
    """Declare what specs of images with masks hold."""

    inputs: _ImageInputs
    preprocessing: _MaskedPreprocessing


Milliseconds = Annotated[float, Gt(0), Le(60_000)]


class _AudioInputs(Stored):
    spectrogram: Fields | None = None
    waveform: Fields | None = None


class _AudioPreprocessing(Stored):
    sample_rate: Annotated[int, Ge(1_000), Le(768_000)]
    seconds: Annotated[float, Gt(0), Le(86_400)]
    span: Annotated[float, Gt(0), Le(10 * 86_400)]
    loudness: bool
    input: Literal["waveform"] = "waveform"  # absent for a spectrogram
    whole: bool = False
    shortest: Annotated[float, Ge(0)] = 0.0
    # Keys of a spectrogram. These defaults are never used.
    mels: Annotated[int, Gt(0), Le(4096)] = 1
    window: Milliseconds = 1.0
    hop: Milliseconds = 1.0
    fmin: Annotated[float, Ge(0)] = 0.0
    fmax: Positive = 1.0
    fft: Annotated[int, Gt(0), Le(2**20)] = 1


class Recordings(Stored):
    """Declare what specs of recordings hold."""

    inputs: _AudioInputs
    preprocessing: _AudioPreprocessing

    @model_validator(mode="after")
    def _complete(self) -> Self:
        made = self.preprocessing.model_fields_set
        wanted = "waveform" if "input" in made else "spectrogram"
        if getattr(self.inputs, wanted) is None:
            raise ValueError(f"inputs has no {wanted}, which preprocessing makes (preprocessing.input)")
        absent = [key for key in ("mels", "window", "hop", "fmin", "fmax", "fft") if key not in made]
        if wanted == "spectrogram" and absent:
            raise ValueError(f"preprocessing has no {listing(absent)}, which a spectrogram needs")
        return self


class _Numeric(Stored):
    name: str
    mean: float
    std: Positive
    missing: bool
    part: Literal["moment", "year", "month", "day", "weekday", "hour"] | None = None
    order: Literal["year first", "day first", "month first", "times of day"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.part is not None and self.order is None:
            raise ValueError("order is missing, which a part of a date needs")
        return self


class _Categorical(Stored):
    name: str
    categories: list[str]


class _Notation(Stored):
    model_config = ConfigDict(extra="forbid")

    decimal: Literal[".", ","] = "."
    thousands: Annotated[str, Field(max_length=1)] = ""
    unit: Annotated[str, Field(max_length=3)] = ""
    style: Literal["", "parentheses", "no cents", "sign after", "fortran"] = ""


class _TablePreprocessing(Stored):
    numeric: list[_Numeric]
    categorical: list[_Categorical]
    missing: list[str] = []
    numbers: dict[str, _Notation] = {}


class Tables(Stored):
    """Declare what specs of tables hold."""

    preprocessing: _TablePreprocessing


class _TokenInputs(Stored):
    tokens: Fields


class _TextPreprocessing(Stored):
    tokenizer: str
    ids: Size
    length: Size
    text: str | list[str]
    vocabulary: int | None = None
    lowercase: bool | None = None
    columns: list[str] | None = None
    prompt: str = ""
    prompts: dict[str, str] = {}


class Texts(Stored):
    """Declare what specs of texts hold."""

    inputs: _TokenInputs
    preprocessing: _TextPreprocessing


class _EventPreprocessing(Stored):
    items: list[str]
    ids: Count
    length: Size
    repeats: bool
    user: str
    item: str
    time: str
    columns: list[str] | None
    missing: list[str] = []
    times: str = ""


class Histories(Stored):
    """Declare what specs of events hold."""

    inputs: _TokenInputs
    preprocessing: _EventPreprocessing


class _Statistics(Stored):
    name: str
    mean: float
    std: Positive
    naive: Positive | None


LONGEST = 2**33  # seconds; more of them do not fit into 64 bits as nanoseconds


class _Times(Stored):
    pattern: str
    ticks: Size
    unit: Literal["second", "month", "business day", "number"]
    step: Annotated[float, Gt(0), Le(2**53)]
    on: Annotated[str, Field(pattern=r"^([1-9]|[12]\d|3[01]|last day|first business day|last business day)?$")]
    local: bool

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.unit != "number" and self.step > LONGEST:
            raise ValueError(f"step of dates is at most {LONGEST:,}")
        if self.unit in ("month", "business day") and not self.step.is_integer():
            raise ValueError("step of months and business days is a whole number")
        if self.unit == "month" and not self.on:
            raise ValueError("on is missing, which steps of months need")
        return self


class _SeriesInputs(Stored):
    series: Fields


class _SeriesPreprocessing(Stored):
    time: str
    columns: list[str] | None
    id: str | None
    value: str | None
    missing: Literal["error", "previous"]
    missing_words: list[str] = []
    fill: Literal["forward", "interpolate", "none"] | None = None
    times: _Times | None = None
    context: Size
    horizon: Count
    season: Size
    series: list[_Statistics]

    @model_validator(mode="after")
    def _long(self) -> Self:
        if (self.id is None) != (self.value is None):
            raise ValueError("id and value need each other")
        return self


class Series(Stored):
    """Declare what specs of series hold."""

    inputs: _SeriesInputs
    preprocessing: _SeriesPreprocessing
