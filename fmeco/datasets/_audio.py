"""Recordings: the one canonical decode, from a file to a log-mel spectrogram, or to the waveform that some networks hear."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fmeco.core import ConfigError, DataError, DataSpec, Inputs, InputSpec, clean, fit, same_modality
from fmeco.datasets import _files, _splits

FLOOR = 1e-6  # added to the power of a band: silence has a logarithm, too
SPAN = 4  # times `seconds` that are decoded of a long recording: training crops from them
SHORTEST = 25.0  # ms of a waveform
SILENCE = 1e-12  # what a waveform holds in place of 0
RATES = (1_000, 768_000)  # Hz; a header that says anything else would ask for a filter without end
SAMPLED = 256  # training files that the mean and deviation are measured on
DEFAULTS = {"sample_rate": 16_000, "seconds": 1.0, "loudness": True}
SPECTRAL = {"mels": 64, "window": 25.0, "hop": 10.0, "fmin": 20.0, "fmax": None}  # of spectrograms alone
LOUDNESS, QUIETEST = 0.1, 1e-4  # root mean squares: what recordings are brought to, and below which they are silence


def import_soundfile() -> Any:
    """soundfile, imported late: it is an extra."""
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        raise ConfigError(f"reading recordings needs soundfile: {error}", "pip install 'fmeco[audio]'") from None


def audio_spec(
    known: DataSpec | None, *, seconds: float | None, whole: bool = False, **given: str | float | None
) -> DataSpec:
    """How recordings become inputs: the checkpoint's way (`known`), of which only `seconds` may be changed; else the
    default. A spectrogram's mean and std are the checkpoint's; without one they are still to be measured. whole: a recording
    is never cropped, as the rest of it would not say its transcript. given: the dataset's further keys, None where the config
    does not say them."""
    same_modality(known, "audio")
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    if old:
        old = {"input": "spectrogram", **old}
    given = {key: value for key, value in given.items() if value is not None}
    waveform = {"input": "spectrogram", **given, **old}["input"] == "waveform"
    if odd := [key for key, value in given.items() if key in old and value != old[key]]:
        raise ConfigError(
            f"dataset.{odd[0]}: {given[odd[0]]}: the checkpoint was trained with {old[odd[0]]}, and knows nothing else",
            "leave the key out: files are read, and resampled, the checkpoint's way",
        )
    if whole and known is not None and known.targets and seconds not in (None, old["seconds"]):
        raise ConfigError(
            f"dataset.seconds: {seconds:g}: this checkpoint hears {old['seconds']:g} s, and would crop what is longer",
            "fmeco finetune --from it takes another length",
        )
    if waveform and (odd := [key for key in given if key in SPECTRAL]):
        raise ConfigError(f"dataset.{odd[0]}: of spectrograms, and the input is the waveform", "leave the key out")
    how: dict[str, Any] = {**DEFAULTS, **({} if waveform else SPECTRAL), **given, **old}
    if seconds is not None:
        how["seconds"] = seconds
    how["span"] = SPAN * how["seconds"]
    how.pop("whole", None)
    if whole:
        how["whole"] = True
    if waveform:
        length = max(1, round(how["seconds"] * how["sample_rate"]))
        return DataSpec("audio", {"waveform": InputSpec((length,), ragged=True)}, {}, how, "audio")
    how.pop("input", None)
    if how["fmax"] is None:
        how["fmax"] = how["sample_rate"] / 2
    if not how["fmin"] < how["fmax"] <= how["sample_rate"] / 2:
        raise ConfigError(
            f"dataset: fmin {how['fmin']:g} and fmax {how['fmax']:g} Hz: expected fmin < fmax, and fmax at most "
            f"{how['sample_rate'] / 2:g}, half of the sample_rate"
        )
    if not old:
        how["fft"] = _fft_length(how)
    frames = round(1000 * how["seconds"] / how["hop"])
    if frames < 1 or _samples(how, "hop") < 1:
        raise ConfigError(f"dataset: {how['seconds']:g} s hold no step of {how['hop']:g} ms", "raise seconds, or hop")
    one = known.inputs["spectrogram"] if known is not None and old else None
    mean, std = (one.mean, one.std) if one is not None else ((), ())
    return DataSpec(
        modality="audio",
        reader="audio",
        inputs={"spectrogram": InputSpec((1, how["mels"], frames), "float32", 1.0, mean, std)},
        preprocessing=how,
    )


def _samples(how: Mapping[str, Any], key: str) -> int:
    """`window` or `hop`, which are in milliseconds, as a number of samples."""
    count: int = round(how["sample_rate"] * how[key] / 1000)
    return count


def _fft_length(how: Mapping[str, Any]) -> int:
    """A power of two that holds a window, and is so long that every mel band holds a frequency. Zeros after the window
    only draw the same spectrum more finely."""
    shortest = 1 << max(_samples(how, "window") - 1, 1).bit_length()
    for length in (shortest, 2 * shortest, 4 * shortest, 8 * shortest):
        if _filters(how["sample_rate"], length, how["mels"], how["fmin"], how["fmax"]).sum(1).min() > 0:
            return length
    raise ConfigError(
        f"dataset.mels: {how['mels']} bands from {how['fmin']:g} to {how['fmax']:g} Hz are finer than windows of "
        f"{how['window']:g} ms can tell apart",
        "lower mels, or raise window",
    )


@functools.lru_cache(maxsize=8)
def _filters(sample_rate: int, fft: int, mels: int, fmin: float, fmax: float) -> Any:
    """Triangles (mels, fft / 2 + 1) between points that are equally far apart on the mel scale m = 2595 log10(1 + f / 700).

    https://doi.org/10.1109/TASSP.1980.1163420 (Davis and Mermelstein 1980), figure 1; the scale is HTK's. Sparse, and so
    multiplied in one order on any number of threads: the same file gives the same bits whoever reads it.
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (fmin, fmax))
    edges = 700 * (10 ** (np.linspace(low, high, mels + 2) / 2595) - 1)  # Hz
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    f = np.fft.rfftfreq(fft, 1 / sample_rate)
    triangles = np.minimum((f - left) / (centre - left), (right - f) / (right - centre))
    return csr_array(np.maximum(triangles, 0).astype(np.float32))


def log_mel(wave: Tensor, how: Mapping[str, Any]) -> Tensor:
    """A waveform (L,) at how["sample_rate"], in -1..1 -> (1, mels, L // hop): the logarithm of the power in each band,
    with frame t around sample t * hop."""
    window, hop = _samples(how, "window"), _samples(how, "hop")
    hann = torch.hann_window(window)
    spectrum = torch.stft(wave, how["fft"], hop, window, hann, center=True, pad_mode="constant", return_complex=True)
    power = torch.view_as_real(spectrum[:, : len(wave) // hop]).square().sum(-1)  # (fft / 2 + 1, frames)
    filters = _filters(how["sample_rate"], how["fft"], how["mels"], how["fmin"], how["fmax"])
    return torch.from_numpy(filters @ power.numpy()).add_(FLOOR).log_()[None]


def decode(path: str, how: Mapping[str, Any]) -> Tensor:
    """A file -> float32 (1, mels, frames or more), or the waveform (L,), a pure function of the file and the spec: of a long
    recording the middle `span` seconds; a short one has silence around it in its spectrogram, and its own length as a
    waveform. Raises DataError that names the file and the reason.

    Training crops, evaluation and prediction all start from exactly this.
    """
    soundfile = import_soundfile()
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            rate, length = file.samplerate, file.frames
            if not RATES[0] <= rate <= RATES[1]:
                raise ValueError(f"its sample rate is {rate} Hz")
            if length * 1000 < (shortest := how.get("window", SHORTEST)) * rate:
                raise ValueError(f"too short: {1000 * length / rate:.0f} ms, of at least {shortest:g}")
            if "whole" in how and length > how["seconds"] * rate + 0.5:
                raise ValueError(
                    f"{length / rate:.2f} s, longer than dataset.seconds, {how['seconds']:g}, which must be that of the longest: a part "
                    "would not say its transcript"
                )
            wanted = min(length, math.ceil(how["span"] * rate))
            file.seek((length - wanted) // 2)
            read = file.read(wanted, dtype="float32", always_2d=True)  # (L, channels)
        if len(read) < wanted:
            raise ValueError("it ends before its header says")
        if not np.isfinite(read).all():
            raise ValueError("it holds values that are not finite")
    except (RuntimeError, OSError, ValueError, TypeError, MemoryError) as error:  # soundfile's own are RuntimeErrors
        told = _files.reason(path, getattr(error, "error_string", error))
        raise DataError(f"cannot read the recording {clean(path)}: {told}") from None
    wave = read.mean(1)
    if rate != how["sample_rate"]:
        wave = _resampled(wave, rate, how["sample_rate"])
    if "input" in how:
        wave = _standardized(wave) if how["loudness"] else wave
        # Batches are filled up with 0, which tells where a recording ends; its own zeros must not.
        return torch.from_numpy(np.where(wave == 0, SILENCE, wave).astype(np.float32))
    if how["loudness"]:
        wave = wave * (LOUDNESS / max(float(np.sqrt(np.square(wave).mean())), QUIETEST))
    frames = round(1000 * how["seconds"] / how["hop"])
    absent = max(0, frames * _samples(how, "hop") - len(wave))
    return log_mel(torch.from_numpy(np.pad(wave, (absent // 2, absent - absent // 2))), how)


def _standardized(wave: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 (L,) of mean 0 and deviation 1, as networks that hear waveforms were trained (do_normalize of transformers)."""
    made: np.ndarray[Any, Any] = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    return made


def _resampled(wave: np.ndarray[Any, Any], rate: int, wanted: int) -> np.ndarray[Any, Any]:
    """float32 (L,) at another rate, with what the new one cannot hold filtered away before."""
    from scipy.signal import resample_poly  # half a second, and few data sets need it

    common = math.gcd(rate, wanted)
    made: np.ndarray[Any, Any] = resample_poly(wave, wanted // common, rate // common)
    return made.astype(np.float32)


class AudioFiles(_files.FileSamples):
    """Recordings on disk."""

    one, many = "recording", "recordings"

    def __init__(self, files: _files.Files, targets: Mapping[str, Tensor | list[Any]], how: Mapping[str, Any]) -> None:
        super().__init__(files, targets, how)
        self.input = how.get("input", "spectrogram")
        # Bytes go with the length nearly always. They also go with formats, and these with classes: a batch of one class
        # teaches little, and so only transcripts are sorted.
        if self.input == "waveform" and "whole" in how and len(files.sizes):
            self.lengths = torch.from_numpy(files.sizes)

    def decode(self, path: str) -> Inputs:
        return {self.input: decode(path, self.how)}

    @functools.cached_property
    def drawn(self) -> list[int]:
        """A few samples, by name, to say something of all."""
        found: list[int] = np.argsort(_splits.ranks(self.files.names(), "statistics"), kind="stable")[:SAMPLED].tolist()
        return found


def cropped(samples: AudioFiles, spec: DataSpec) -> list[str]:
    """A note where most recordings are longer than what the model hears."""
    seconds, long = spec.preprocessing["seconds"], 0
    for index in samples.drawn:
        with contextlib.suppress(RuntimeError, OSError):  # left to training, which names the file
            path = os.path.join(samples.files.root, samples.name(index))
            long += import_soundfile().info(os.fsencode(path)).duration > 1.5 * seconds
    note = f"most recordings are longer than dataset.seconds, {seconds:g}: the model hears {seconds:g} s at a time"
    return [note] if 2 * long > len(samples.drawn) else []


def measure(samples: AudioFiles, spec: DataSpec) -> InputSpec:
    """The spectrogram's description with the mean and deviation of some training files. What cannot be read is left to
    training, which names it.

    Rounded: they describe the data, and must not differ where another machine adds in another order.
    """
    how = spec.inputs["spectrogram"]
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
    return InputSpec(how.shape, how.dtype, how.scale, (round(mean, 3),), (std,))
