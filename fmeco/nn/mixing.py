"""Mix pairs of samples (mixup, CutMix), as a pure function of a batch and its keys."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fmeco.core.data import Inputs


def mix_batch(inputs: Inputs, keys: Tensor, mixup: float, cutmix: float) -> tuple[Inputs, Tensor, float]:
    """Mix each sample with its neighbour in the (shuffled) batch, with one ratio for the whole batch.

    inputs: float tensors (B, ...); cutmix needs (B, C, H, W).
    keys: (B,) int64.
    mixup, cutmix: alpha of Beta(alpha, alpha), 0 = off; if both are on, each batch uses either with probability 1/2.

    Returns the mixed inputs, the position of each sample's partner (B,), and the weight lam of the sample's own label.

    mixup: https://arxiv.org/abs/1710.09412 equation (1). cutmix: https://arxiv.org/abs/1905.04899 equations (1), (2).
    """
    partner = torch.arange(len(keys)).roll(1)
    rng = np.random.Generator(np.random.Philox(key=int(keys[0]) & (2**64 - 1)))
    use_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    lam = float(rng.beta(alpha, alpha))
    out: Inputs = {}
    if not use_cutmix:
        for name, x in inputs.items():
            out[name] = x.lerp(x[partner.to(x.device)], 1 - lam) if x.is_floating_point() else x
        return out, partner, lam
    centre = rng.random(2)
    for name, x in inputs.items():
        h, w = x.shape[-2:]
        half_h, half_w = h * math.sqrt(1 - lam) / 2, w * math.sqrt(1 - lam) / 2
        top, bottom = (int(np.clip(centre[0] * h + side * half_h, 0, h)) for side in (-1, 1))
        left, right = (int(np.clip(centre[1] * w + side * half_w, 0, w)) for side in (-1, 1))
        mixed = x.clone()
        mixed[..., top:bottom, left:right] = x[partner.to(x.device)][..., top:bottom, left:right]
        out[name] = mixed
        lam = 1 - (bottom - top) * (right - left) / (h * w)  # the box was clipped at the border
    return out, partner, lam
