"""Turn class names into codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fmeco.core import ConfigError, DataError, Target, listing, nearest
from fmeco.datasets._splits import Indices


def natural(labels: Sequence[str]) -> list[str]:
    """Distinct labels in order: by value when all are whole numbers, else by name."""
    distinct = set(labels)
    if all(label.lstrip("-").isdigit() for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def encode(
    labels: Sequence[str],
    classes: Sequence[str | int] | None,
    known: Target | None,
    where: str,
    whose: str = "the checkpoint",
) -> tuple[Indices, Indices, tuple[str, ...], list[str]]:
    """Class names -> codes. The order comes from the checkpoint (`known`), else from `classes`, else from the names.

    Returns (positions kept, their codes, class names, notes). Raises DataError for labels that a checkpoint does not
    know, ConfigError for `classes` that the data does not have, DataError for fewer than two classes.
    """
    notes: list[str] = []
    present = natural(labels)
    chosen = [str(name) for name in classes] if classes is not None else None
    if chosen is not None:
        if absent := [name for name in chosen if name not in present]:
            raise ConfigError(
                f"{where}: dataset.classes names {listing(absent)}, which the data does not have{nearest(absent[0], present)}",
                f"classes in the data: {listing(present, 20)}",
            )
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"{where}: dataset.classes names a class twice")
    if known is not None:
        order = known.classes
        if strange := [name for name in (chosen or present) if name not in order]:
            raise DataError(
                f"{where}: {whose} has no class {listing(strange)}; it knows: {listing(order, 20)}",
                "choose among the data's classes with --set dataset.classes=[...], or finetune for the new ones",
            )
        if absent := [name for name in order if name not in (chosen or present)]:
            notes.append(f"{where}: no samples of {listing(absent)}")
    else:
        order = tuple(chosen or present)
        if len(order) < 2:
            raise DataError(
                f"{where}: {'only one class (' + order[0] + ')' if order else 'no classes'}: a classifier needs two",
                "class folders (one folder of images per class) or a label column give the classes",
            )
    table = {name: code for code, name in enumerate(order)}
    wanted = set(chosen or order)
    kept = np.array([i for i, label in enumerate(labels) if label in wanted], dtype=np.int64)
    codes = np.array([table[labels[i]] for i in kept], dtype=np.int64)
    return kept, codes, order, notes
