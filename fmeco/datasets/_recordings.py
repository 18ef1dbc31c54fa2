"""Refuse recordings that are cut off or silent, and mix their channels."""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np

from fmeco.files import regular

STEP = 2**-15  # of a 16-bit file; a recording whose samples all lie within one step is silent
CANCELLED = 1e-3  # share of the channels' power in their mean, below which they cancel each other out
LOUDEST = 2.0**31  # samples are within -1 to 1, or, in some files of floats, on the scale of 16-bit or 32-bit numbers
STREAMED = 0x7FFFF000  # sizes from here on in the header of a WAV file mean that its length was not known


def check_whole(path: str) -> None:
    """Check that a WAV file has the length that its header states; libsndfile reads half a file without a word.

    Raises ValueError if more than a hundredth of its samples is absent.
    """
    with open(path, "rb", opener=regular) as file:
        kind, _, form = struct.unpack("<4sI4s", file.read(12).ljust(12))
        if kind not in (b"RIFF", b"RIFX", b"RF64") or form != b"WAVE":
            return
        order, large = ">" if kind == b"RIFX" else "<", 0
        end = os.fstat(file.fileno()).st_size
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack(f"{order}4sI", head)
            start = file.tell()
            if name == b"ds64":  # sizes of 64 bits, of a file that may be larger than 4 GB
                _, large = struct.unpack("<QQ", file.read(16).ljust(16))
            if name == b"data":
                size = large or size
                absent = start + size - end
                if (large or size < STREAMED) and 100 * absent > size:
                    raise ValueError(
                        f"it is cut off: {absent / size:.0%} of the sound in its header is absent; copy it again"
                    )
                return
            file.seek(start + size + size % 2)


def mixed(read: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Average the channels of a recording (L, channels), and remove its constant offset, which is no sound.

    Raises ValueError for silence, for channels whose average is silence, and for samples that are no sound.
    """
    if (peak := float(np.abs(read).max(initial=0.0))) > LOUDEST:
        raise ValueError(f"it holds a sample of {peak:.3g}, and sound is within -1 to 1; the file is damaged")
    channels = np.ascontiguousarray(read.T)  # (channels, L): sums along rows are several times as fast
    channels -= channels.mean(1, dtype=np.float64, keepdims=True).astype(np.float32)
    if np.ptp(channels, 1).max() <= STEP:
        raise ValueError(
            "it is silent: all its samples are equal; for a class of silence, use recordings of a quiet room"
        )
    wave: np.ndarray[Any, Any] = channels.mean(0)
    if len(channels) > 1 and np.square(wave).mean() < CANCELLED * np.square(channels).mean():
        raise ValueError(
            "its channels cancel each other out, as left = -right does; save one channel, or turn one around"
        )
    return wave
