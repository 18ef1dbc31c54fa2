"""Decode recordings to log-mel spectrograms or waveforms; the same decoding for training, evaluation and prediction.

`prep` in this file is a spec's `preprocessing`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fmeco.core import (
    ConfigError,
    DataError,
    DataSpec,
    Inputs,
    InputSpec,
    Samples,
    clean,
    decode_rule,
    fit,
    same_modality,
)
from fmeco.datasets import _files, _recordings, _splits
from fmeco.files import absence

FLOOR = 1e-6  # added to the power of a band, so that silence has a logarithm
SPAN = 4  # decode the middle SPAN * `seconds` of a long recording; training crops from it
SHORTEST = 25.0  # shortest waveform, in ms
SILENCE = 1e-12  # replaces samples of exactly 0 in a waveform
RATES = (1_000, 768_000)  # Hz; with any other rate in a header, the resampling filter would be far too long
SAMPLED = 256  # number of training files to measure mean and deviation on
DEFAULTS = {"sample_rate": 16_000, "seconds": 1.0, "loudness": True}
SPECTRAL = {"mels": 64, "window": 25.0, "hop": 10.0, "fmin": 20.0, "fmax": None}  # defaults for spectrograms only
LOUDNESS, QUIETEST = 0.1, 1e-4  # root mean squares: the target loudness, and the level below which gain stops growing


def import_soundfile() -> Any:
    """Import soundfile, which is an optional dependency. Raises ConfigError if it cannot be imported."""
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        raise ConfigError(f"reading recordings needs soundfile: {error}", "pip install 'fmeco[audio]'") from None


def audio_spec(
    known: DataSpec | None, *, seconds: float | None, whole: bool = False, **keys: str | float | None
) -> DataSpec:
    """Describe how recordings become inputs.

    known: the checkpoint's description; its preprocessing holds, and only `seconds` may differ.
    whole: never crop a recording, because a part of it would not match its transcript.
    keys: the dataset's other keys; None for those that the config does not set.
    A spectrogram's mean and std are the checkpoint's; without a checkpoint they are empty, to be measured later.
    Raises ConfigError for keys that contradict the checkpoint, the kind of input, or each other.
    """
    same_modality(known, "audio")
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    if old:
        old = {"input": "spectrogram", **old}
    keys = {key: value for key, value in keys.items() if value is not None}
    waveform = {"input": "spectrogram", **keys, **old}["input"] == "waveform"
    if odd := [key for key, value in keys.items() if key in old and value != old[key]]:
        raise ConfigError(
            f"dataset.{odd[0]}: {keys[odd[0]]}: the checkpoint was trained with {old[odd[0]]} and works with no other value",
            "leave the key out: files are read, and resampled, as the checkpoint needs them",
        )
    if whole and known is not None and known.targets and seconds not in (None, old["seconds"]):
        raise ConfigError(
            f"dataset.seconds: {seconds:g}: this checkpoint was trained on at most {old['seconds']:g} s, and must not crop recordings",
            "to use another length, finetune it: fmeco finetune --from",
        )
    if waveform and (odd := [key for key in keys if key in SPECTRAL]):
        raise ConfigError(f"dataset.{odd[0]}: is for spectrograms, and dataset.input is waveform", "leave the key out")
    prep: dict[str, Any] = {**DEFAULTS, **({} if waveform else SPECTRAL), **keys, **old}
    if seconds is not None:
        prep["seconds"] = seconds
    prep["span"] = SPAN * prep["seconds"]
    if (rule := decode_rule(known)) > 1:
        prep["decode"] = rule
    prep.pop("whole", None)
    if whole:
        prep["whole"] = True
    if waveform:
        length = max(1, round(prep["seconds"] * prep["sample_rate"]))
        return DataSpec("audio", {"waveform": InputSpec((length,), ragged=True)}, {}, prep, "audio")
    prep.pop("input", None)
    if prep["fmax"] is None:
        prep["fmax"] = prep["sample_rate"] / 2
    frames = _check_spectral(prep)
    if not old:
        prep["fft"] = _fft_length(prep)
    spectrogram = known.inputs["spectrogram"] if known is not None and old else None
    mean, std = (spectrogram.mean, spectrogram.std) if spectrogram is not None else ((), ())
    return DataSpec(
        modality="audio",
        reader="audio",
        inputs={"spectrogram": InputSpec((1, prep["mels"], frames), "float32", 1.0, mean, std)},
        preprocessing=prep,
    )


def _check_spectral(prep: Mapping[str, Any]) -> int:
    """Check the keys of a spectrogram against each other. Returns its number of frames; raises ConfigError."""
    if not prep["fmin"] < prep["fmax"] <= prep["sample_rate"] / 2:
        raise ConfigError(
            f"dataset: fmin {prep['fmin']:g} and fmax {prep['fmax']:g} Hz: expected fmin < fmax, and fmax at most "
            f"{prep['sample_rate'] / 2:g}, half of the sample_rate"
        )
    frames: int = round(1000 * prep["seconds"] / prep["hop"])
    if frames < 1 or _samples(prep, "hop") < 1:
        raise ConfigError(
            f"dataset.hop: {prep['hop']:g} ms is less than one sample, or leaves no frame in dataset.seconds, {prep['seconds']:g}",
            "raise dataset.seconds, or change dataset.hop",
        )
    return frames


def _samples(prep: Mapping[str, Any], key: str) -> int:
    """Convert `window` or `hop` (key) from milliseconds to a number of samples."""
    count: int = round(prep["sample_rate"] * prep[key] / 1000)
    return count


def _fft_length(prep: Mapping[str, Any]) -> int:
    """Choose the FFT length: the smallest power of two that holds a window and gives every mel band a frequency.

    Padding a window with zeros interpolates its spectrum. Raises ConfigError if the bands are too narrow for the window.
    """
    shortest = 1 << max(_samples(prep, "window") - 1, 1).bit_length()
    for length in (shortest, 2 * shortest, 4 * shortest, 8 * shortest):
        if _filters(prep["sample_rate"], length, prep["mels"], prep["fmin"], prep["fmax"]).sum(1).min() > 0:
            return length
    raise ConfigError(
        f"dataset.mels: {prep['mels']} bands from {prep['fmin']:g} to {prep['fmax']:g} Hz are too narrow for windows of "
        f"{prep['window']:g} ms",
        "lower mels, or raise window",
    )


@functools.lru_cache(maxsize=8)
def _filters(sample_rate: int, fft: int, mels: int, fmin: float, fmax: float) -> Any:
    """Build triangular mel filters (mels, fft / 2 + 1), equally spaced on the mel scale m = 2595 log10(1 + f / 700).

    https://doi.org/10.1109/TASSP.1980.1163420 (Davis and Mermelstein 1980), figure 1; the scale is HTK's. The matrix is
    sparse, so the products are summed in the same order with any number of threads, and a file always gives the same bits.
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (fmin, fmax))
    edges = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)  # Hz
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    f = np.fft.rfftfreq(fft, 1 / sample_rate)
    triangles = np.minimum((f - left) / (centre - left), (right - f) / (right - centre))
    return csr_array(np.maximum(triangles, 0).astype(np.float32))


def log_mel(wave: Tensor, prep: Mapping[str, Any]) -> Tensor:
    """Compute the log-mel spectrogram (1, mels, L // hop) of a waveform (L,) in -1..1 at prep["sample_rate"].

    It is the logarithm of the power in each band; frame t is centred on sample t * hop.
    """
    window, hop = _samples(prep, "window"), _samples(prep, "hop")
    hann = torch.hann_window(window)
    spectrum = torch.stft(wave, prep["fft"], hop, window, hann, center=True, pad_mode="constant", return_complex=True)
    power = torch.view_as_real(spectrum[:, : len(wave) // hop]).square().sum(-1)  # (fft / 2 + 1, frames)
    filters = _filters(prep["sample_rate"], prep["fft"], prep["mels"], prep["fmin"], prep["fmax"])
    return torch.from_numpy(filters @ power.numpy()).add_(FLOOR).log_()[None]


def decode(path: str, prep: Mapping[str, Any]) -> Tensor:
    """Decode a file to a spectrogram (1, mels, frames or more) or waveform (L,), float32: a pure function of file and spec.

    Of a long recording, the middle `span` seconds are decoded. A short one is padded with silence on both sides for a
    spectrogram, and keeps its own length as a waveform. Training crops, evaluation and prediction all start from this.
    Raises DataError that names the file and the reason.
    """
    soundfile = import_soundfile()
    try:
        if not os.path.isfile(path):
            raise ValueError(absence(path))
        with soundfile.SoundFile(os.fsencode(path)) as file:
            rate = file.samplerate
            start, wanted = middle(file.frames, rate, prep)
            file.seek(start)
            read = file.read(wanted, dtype="float32", always_2d=True)  # (L, channels)
        if prep.get("decode", 1) > 1:
            _recordings.check_whole(path)
        if len(read) < wanted:
            raise ValueError("it is shorter than its header says")
        if not np.isfinite(read).all():
            raise ValueError("it holds values that are not finite")
        wave = mixed(read, prep)
    except (RuntimeError, OSError, ValueError, TypeError, MemoryError) as error:  # soundfile raises RuntimeErrors
        reason = _files.reason(path, getattr(error, "error_string", error))
        raise DataError(f"cannot read the recording {clean(path)}: {reason}") from None
    return prepared(wave, rate, prep)


def middle(length: int, rate: int, prep: Mapping[str, Any]) -> tuple[int, int]:
    """Find the part of a recording of `length` samples that is decoded. Returns its start and its number of samples.

    Raises ValueError for a rate or length that the spec does not allow.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"its sample rate is {rate} Hz, not within {RATES[0]} to {RATES[1]}")
    if length * 1000 < (shortest := prep.get("window", SHORTEST)) * rate:
        raise ValueError(f"too short: {1000 * length / rate:.0f} ms, and at least {shortest:g} ms are needed")
    if "whole" in prep and length > prep["seconds"] * rate + 0.5:
        raise ValueError(
            f"{length / rate:.2f} s, longer than dataset.seconds, {prep['seconds']:g}; raise it to the length of the longest "
            "recording: a cropped one would not match its transcript"
        )
    wanted = min(length, math.ceil(prep["span"] * rate))
    return (length - wanted) // 2, wanted


def mixed(read: np.ndarray[Any, Any], prep: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Mix the channels of a recording (L, channels) to one (L,). Raises ValueError for silence, which rule 1 allows."""
    plain: np.ndarray[Any, Any] = read.mean(1)
    if prep.get("decode", 1) == 1:
        return plain
    wave = _recordings.mixed(read)
    # A speech encoder without normalisation gets the waveform as its library would make it.
    return plain if "input" in prep and not prep["loudness"] else wave


def prepared(wave: np.ndarray[Any, Any], rate: int, prep: Mapping[str, Any]) -> Tensor:
    """Turn the samples of a recording (L,) into a spectrogram (1, mels, frames or more) or waveform (L,)."""
    if rate != prep["sample_rate"]:
        wave = _resampled(wave, rate, prep["sample_rate"])
    if "input" in prep:
        wave = _standardized(wave) if prep["loudness"] else wave
        # Batches are padded with 0, which marks the end of a recording, so samples of exactly 0 are replaced.
        return torch.from_numpy(np.where(wave == 0, SILENCE, wave).astype(np.float32))
    if prep["loudness"]:
        wave = wave * (LOUDNESS / max(float(np.sqrt(np.square(wave).mean())), QUIETEST))
    frames = round(1000 * prep["seconds"] / prep["hop"])
    absent = max(0, frames * _samples(prep, "hop") - len(wave))
    return log_mel(torch.from_numpy(np.pad(wave, (absent // 2, absent - absent // 2))), prep)


def _standardized(wave: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Standardise a waveform (L,) to mean 0 and deviation 1, as published speech encoders expect (do_normalize of transformers)."""
    made: np.ndarray[Any, Any] = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    return made


def _resampled(wave: np.ndarray[Any, Any], rate: int, wanted: int) -> np.ndarray[Any, Any]:
    """Resample a waveform (L,) to another rate, with a filter against aliasing."""
    from scipy.signal import resample_poly  # importing takes half a second, and few datasets need it

    common = math.gcd(rate, wanted)
    made: np.ndarray[Any, Any] = resample_poly(wave, wanted // common, rate // common)
    return made.astype(np.float32)


class AudioFiles(_files.FileSamples):
    """Read recordings from disk."""

    one, many = "recording", "recordings"

    def __init__(self, files: _files.Files, targets: Mapping[str, Tensor | list[Any]], prep: Mapping[str, Any]) -> None:
        super().__init__(files, targets, prep)
        self.input = prep.get("input", "spectrogram")
        # Lengths let the loader batch recordings of similar length. File size stands for length, but also depends on the
        # format, which may depend on the class: sorting could give batches of one class, so only transcripts are sorted.
        if self.input == "waveform" and "whole" in prep and len(files.sizes):
            self.lengths = torch.from_numpy(files.sizes)

    def decode(self, path: str) -> Inputs:
        return {self.input: decode(path, self.prep)}

    @functools.cached_property
    def drawn(self) -> list[int]:
        """Draw the positions of at most SAMPLED samples, by a hash of their names."""
        order: list[int] = np.argsort(_splits.ranks(self.files.names(), "statistics"), kind="stable")[:SAMPLED].tolist()
        return order


def durations(samples: AudioFiles, at: Sequence[int]) -> dict[int, float]:
    """Read the length in seconds of the samples at positions `at` from their headers, without those that cannot be read."""
    info, found = import_soundfile().info, dict[int, float]()
    for index in at:
        path = samples.path(index)
        with contextlib.suppress(RuntimeError, OSError):  # reading the sample will report why
            if os.path.isfile(path):
                found[index] = info(os.fsencode(path)).duration
    return found


def lengths(samples: AudioFiles, spec: DataSpec) -> tuple[DataSpec, list[str]]:
    """Look at the length of some training recordings.

    Returns (the spec with the length of the shortest, notes if most recordings are much longer or shorter than the model's
    input).
    """
    seconds, found = spec.preprocessing["seconds"], list(durations(samples, samples.drawn).values())
    notes: list[str] = []
    if 2 * sum(one > 1.5 * seconds for one in found) > len(found):
        notes.append(
            f"most recordings are longer than dataset.seconds, {seconds:g}: the model gets {seconds:g} s at a time"
        )
    if "spectrogram" in spec.inputs and 2 * sum(one < 0.5 * seconds for one in found) > len(found):
        notes.append(
            f"most recordings are shorter than half of dataset.seconds, {seconds:g}: the rest is filled with silence"
        )
    if not found or spec.decode == 1:
        return spec, notes
    shortest = min(round(min(found), 3), spec.preprocessing.get("shortest", math.inf))
    return dataclasses.replace(spec, preprocessing={**spec.preprocessing, "shortest": shortest}), notes


def shorter(samples: AudioFiles, at: Sequence[int], spec: DataSpec) -> list[str]:
    """Return a note on recordings that are much shorter than all that the model was trained on."""
    if "shortest" not in spec.preprocessing:
        return []
    return much_shorter(samples, durations(samples, at), len(at), spec)


def much_shorter(samples: Samples, seconds: Mapping[int, float], count: int, spec: DataSpec) -> list[str]:
    """Return the note of `shorter`. seconds: length of the samples that can be read. count: number of samples."""
    limit = spec.preprocessing.get("shortest", 0.0) / 2
    short = {index: one for index, one in seconds.items() if one < limit}
    if not short:
        return []
    first = next(iter(short))
    return [
        f"{len(short):,} of {count:,} recordings are shorter than {limit:g} s, half of the shortest that the model was trained "
        f"on, so it may not know what they are; the first is {clean(samples.name(first))}, {short[first]:.2f} s"
    ]


def measure(samples: AudioFiles, spec: DataSpec) -> InputSpec:
    """Measure mean and deviation of the spectrogram on some training files. Returns its description with both.

    Files that cannot be read are skipped; training reports them. Both numbers are rounded, so that they do not depend on
    the machine's order of summation. Raises DataError if no file can be read.
    """
    described = spec.inputs["spectrogram"]
    count, total, squares, failed = 0, 0.0, 0.0, DataError("no recordings")
    for index in samples.drawn:
        try:
            x = fit(samples[index], spec)["spectrogram"].double()
        except DataError as error:
            failed = error
            continue
        count, total, squares = count + x.numel(), total + float(x.sum()), squares + float(x.square().sum())
    if not count:
        raise failed
    mean = total / count
    std = round(math.sqrt(max(squares / count - mean**2, 0.0)), 3) or 1.0
    return InputSpec(described.shape, described.dtype, described.scale, (round(mean, 3),), (std,))
