"""Derive random numbers from integer keys by hashing, without the state of a generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mix(*words: int | Tensor) -> Tensor:
    """Hash integers, or int64 tensors that broadcast, to int64 keys with the SplitMix64 finaliser.

    This is a counter-based generator: the key of (seed, epoch, index, view) depends on no state and no order of calls.
    https://doi.org/10.1145/2714064.2660195 (Steele, Lea, Flood 2014).
    """
    first = next((i for i, word in enumerate(words) if isinstance(word, Tensor)), len(words))
    h = np.array([mix_numbers(*words[:first])], dtype=np.uint64)  # type: ignore[arg-type]  # none of these is a Tensor
    for word in words[first:]:
        h = h + (word.numpy().view(np.uint64) if isinstance(word, Tensor) else np.uint64(word))
        h += _GAMMA
        for shift, factor in ((_30, _MIX1), (_27, _MIX2)):
            h ^= h >> shift
            h *= factor
        h ^= h >> _31
    keys = torch.from_numpy(h.view(np.int64))
    return keys if any(isinstance(word, Tensor) and word.ndim for word in words) else keys[0]


_GAMMA, _MIX1, _MIX2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

_30, _27, _31 = map(np.uint64, (30, 27, 31))


def mix_numbers(*words: int) -> int:
    """Hash plain integers as `mix` does, without the cost of tensors. Returns an unsigned 64-bit number."""
    h, limit = 0, (1 << 64) - 1
    for word in words:
        h = (h + word + 0x9E3779B97F4A7C15) & limit
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & limit
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & limit
        h ^= h >> 31
    return h


def seed_torch(*words: int) -> None:
    """Seed torch's global generators (used by dropout and weight initialisation) with a hash of `words`."""
    seed = mix_numbers(*words) & 0x7FFFFFFFFFFFFFFF
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def uniform(keys: Tensor, stream: int) -> Tensor:
    """Draw one uniform float32 number in [0, 1) per key. Different `stream` numbers give independent draws."""
    bits = (mix(keys, stream) >> 40) & 0xFFFFFF  # 24 bits: every value is exact in float32
    return bits.to(torch.float32) / (1 << 24)
