"""Read recordings that were passed in Python as arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmeco.core import DataSpec, Given, Inputs, Samples, listing
from fmeco.datasets import _audio, _files

LOUDEST = 64.0  # louder samples of an array are not between -1 and 1, with headroom for float recordings


def given(values: Sequence[Given], spec: DataSpec) -> Samples:
    """Serve waveforms that were passed in Python, prepared as those of files are."""
    prep = spec.preprocessing

    def decode(value: Any) -> Inputs:
        array, rate = _wave(value, prep)
        start, wanted = _audio.middle(len(array), rate, prep)
        wave = _audio.mixed(array[start : start + wanted], prep)
        return {prep.get("input", "spectrogram"): _audio.prepared(wave, rate, prep)}

    samples = _files.GivenSamples(values, decode)
    found = dict[int, float]()
    for index, one in enumerate(values):
        with contextlib.suppress(Exception):  # reading the sample will report why
            array, rate = _wave(one.value, prep)
            found[index] = len(array) / rate
    samples.notes = tuple(_audio.much_shorter(samples, found, len(values), spec))
    return samples


def _wave(value: Any, prep: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """Check a waveform, or a dict of a waveform and its rate. Returns (samples (L, channels) float32, rate in Hz).

    Raises ValueError that says what is expected.
    """
    wave, rate = value, prep["sample_rate"]
    if isinstance(value, Mapping):
        if not {"array", "sampling_rate"} <= value.keys():
            raise ValueError(f"a dict of a recording has the keys array and sampling_rate, not {listing(value)}")
        wave, rate = value["array"], int(value["sampling_rate"])
    array = np.asarray(wave)
    if array.ndim not in (1, 2) or array.dtype.kind != "f":
        shape = "x".join(map(str, array.shape))
        raise ValueError(f"a waveform is an array of L or Lxchannels floats, and this one is {shape} {array.dtype}")
    array = array.astype(np.float32).reshape(len(array), -1)
    if array.shape[1] > len(array):
        raise ValueError(f"a waveform is Lxchannels, and this one has {array.shape[1]} channels: transpose it")
    if not np.isfinite(array).all() or np.abs(array).max(initial=0) > LOUDEST:
        raise ValueError("a waveform has samples from -1 to 1: divide those of 16-bit integers by 32768")
    return array, rate
