"""No augmentation: training gets exactly the inputs that evaluation gets."""

from __future__ import annotations

from fmeco.core import Augment


def build() -> Augment:
    return Augment()
