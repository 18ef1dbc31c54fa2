"""Turn class names into codes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from fmeco.core import ConfigError, DataError, Target, clean, listing, nearest, nfc
from fmeco.datasets._splits import Indices


def natural(labels: Sequence[str]) -> list[str]:
    """Sort the distinct labels: by value if all are whole numbers, else by name."""
    distinct = set(labels)
    if all(re.fullmatch("-?[0-9]+", label) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), label))
    return sorted(distinct)


def comparable(names: Sequence[str], known: Target | None) -> list[str]:
    """Normalise class names to Unicode NFC, unless a checkpoint (`known`) has two classes that differ only in form."""
    apart = known is not None and len(set(nfc(known.classes))) < len(known.classes)
    return list(names) if apart else nfc(names)


def doubtful(names: Sequence[str], where: str) -> list[str]:
    """Return notes on class names that look like one another, and on -1, which often means "no label"."""
    notes: list[str] = []
    seen: dict[str, str] = {}
    for name in names:
        # Case, spaces and characters without a shape, such as a byte-order mark, are hard to see.
        plain = "".join(c for c in " ".join(name.casefold().split()) if unicodedata.category(c) != "Cf")
        if (twin := seen.setdefault(plain, name)) != name:
            what = "only in case" if twin.casefold() == name.casefold() else "only in spaces or invisible characters"
            notes.append(f"{where}: the classes {clean(ascii(twin))} and {clean(ascii(name))} differ {what}")
    if "-1" in names and {name for name in names if name != "-1"} <= {str(i) for i in range(len(names))}:
        notes.append(
            f"{where}: the label -1 is a class of its own; if it means that there is no label, remove these rows"
        )
    return notes


def encode(
    labels: Sequence[str],
    classes: Sequence[str | int] | None,
    known: Target | None,
    where: str,
    whose: str = "the checkpoint",
) -> tuple[Indices, Indices, tuple[str, ...], list[str]]:
    """Turn class names into codes. Their order is the checkpoint's (`known`), else that of `classes`, else by name.

    Names are compared as Unicode NFC. A checkpoint's own names stay as they are.

    where: the file or dataset, for messages.
    whose: the owner of the classes in `known`, for messages.
    Returns (positions kept, their codes, class names, notes). Raises DataError for labels that the checkpoint does not
    have and for fewer than two classes, ConfigError for `classes` that the data does not have.
    """
    notes: list[str] = []
    written = len(set(labels))
    labels = comparable(labels, known)
    if written > (distinct := len(set(labels))):
        notes.append(
            f"{where}: {written - distinct} class names are written in two ways (Unicode NFC and NFD): one class each"
        )
    order = tuple(comparable(known.classes, known)) if known is not None else ()
    present = natural(labels)
    if known is None:
        notes += doubtful(present, where)
    chosen = nfc([str(name) for name in classes]) if classes is not None else None
    if chosen is not None:
        if absent := [name for name in chosen if name not in present]:
            raise ConfigError(
                f"{where}: dataset.classes names {listing(absent)}, which the data does not have{nearest(absent[0], present)}",
                f"classes in the data: {listing(present, 20)}",
            )
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"{where}: dataset.classes names a class twice")
    if known is not None:
        if strange := [name for name in (chosen or present) if name not in order]:
            raise DataError(
                f"{where}: {whose} has no class {listing(strange)}; it has: {listing(order, 20)}",
                "use only its classes with --set dataset.classes=[...], or finetune to learn the new ones",
            )
        if absent := [name for name in order if name not in (chosen or present)]:
            notes.append(f"{where}: no samples of {listing(absent)}")
    else:
        order = tuple(chosen or present)
        if len(order) < 2:
            raise DataError(
                f"{where}: {'only one class (' + order[0] + ')' if order else 'no classes'}: a classifier needs at least two",
                "classes are the names of class folders (one folder of files per class), or the values of a label column",
            )
    table = {name: code for code, name in enumerate(order)}
    wanted = set(chosen or order)
    kept = np.array([i for i, label in enumerate(labels) if label in wanted], dtype=np.int64)
    codes = np.array([table[labels[i]] for i in kept], dtype=np.int64)
    return kept, codes, known.classes if known is not None else order, notes
