"""Declare what a dataset plug-in stores in checkpoints: the names of its inputs, and its `preprocessing`.

A checkpoint's spec is checked by these before it is used. Keys that they do not declare are allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from fmeco.core import Count, Ge, Gt, Le, Positive, Size, Stored

Fields = dict[str, Any]  # an object that is checked elsewhere


class _ImageInputs(Stored):
    image: Fields


class _ImagePreprocessing(Stored):
    size: Annotated[int, Gt(0), Le(16_384)]
    resize: Annotated[int, Gt(0), Le(32_768)]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    color: Literal["rgb", "gray"]
    mirror: bool = True


class Images(Stored):
    """Declare what specs of images hold."""

    inputs: _ImageInputs
    preprocessing: _ImagePreprocessing


Milliseconds = Annotated[float, Gt(0), Le(60_000)]


class _AudioInputs(Stored):
    spectrogram: Fields | None = None
    waveform: Fields | None = None


class _AudioPreprocessing(Stored):
    sample_rate: Annotated[int, Ge(1_000), Le(768_000)]
    seconds: Annotated[float, Gt(0), Le(86_400)]
    span: Annotated[float, Gt(0), Le(10 * 86_400)]
    loudness: bool
    input: Literal["waveform"] | None = None
    whole: bool = False


class _Spectrogram(_AudioPreprocessing):
    mels: Annotated[int, Gt(0), Le(4096)]
    window: Milliseconds
    hop: Milliseconds
    fmin: Annotated[float, Ge(0)]
    fmax: Positive
    fft: Annotated[int, Gt(0), Le(2**20)]


class Recordings(Stored):
    """Declare what specs of recordings hold."""

    inputs: _AudioInputs
    preprocessing: _Spectrogram | _AudioPreprocessing

    @model_validator(mode="after")
    def _complete(self) -> Self:
        made = self.preprocessing.input or "spectrogram"
        if getattr(self.inputs, made) is None:
            raise ValueError(f"inputs has no {made}, which preprocessing makes")
        if made == "spectrogram" and not isinstance(self.preprocessing, _Spectrogram):
            raise ValueError("preprocessing needs mels, window, hop, fmin, fmax and fft for a spectrogram")
        return self


class _Numeric(Stored):
    name: str
    mean: float
    std: Positive
    missing: bool


class _Categorical(Stored):
    name: str
    categories: list[str]


class _TablePreprocessing(Stored):
    numeric: list[_Numeric]
    categorical: list[_Categorical]


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


class Histories(Stored):
    """Declare what specs of events hold."""

    inputs: _TokenInputs
    preprocessing: _EventPreprocessing


class _Statistics(Stored):
    name: str
    mean: float
    std: Positive
    naive: Positive | None


class _SeriesInputs(Stored):
    series: Fields


class _SeriesPreprocessing(Stored):
    time: str
    columns: list[str] | None
    id: str | None
    value: str | None
    missing: str
    context: Size
    horizon: Count
    season: Size
    series: list[_Statistics]


class Series(Stored):
    """Declare what specs of series hold."""

    inputs: _SeriesInputs
    preprocessing: _SeriesPreprocessing
