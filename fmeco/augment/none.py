"""No variation: training sees exactly what evaluation sees."""

from __future__ import annotations

from fmeco.core import Augment


def build() -> Augment:
    return Augment()
