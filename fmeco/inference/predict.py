"""Predict files, folders or tables with a trained model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, DataError, known_errors, listing
from fmeco.inference.model import load
from fmeco.inference.outputs import WRITERS, check_place, write_rows


@known_errors()
def predict(
    ref: str | Path,
    inputs: Sequence[str],
    *,
    output: Path | None = None,
    plot: Path | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Predict files, folders or tables, as `Model.predict` does.

    output: a file to write the rows to, .csv or .jsonl.
    plot: a .png file for a picture of them, where the dataset plug-in draws one.
    Raises DataError when nothing could be read.
    """
    check_place("--output", output, WRITERS, force)
    check_place("--plot", plot, (".png",), force)
    model = load(ref)
    reader = reader_module(model.spec)
    draw = getattr(reader, "plot", None)
    if plot is not None and draw is None:
        raise ConfigError(
            f"--plot: there is no picture of predictions of {model.spec.modality} data", "it draws series"
        )
    absent = [one for one in inputs if not os.path.exists(one)]
    if absent and not getattr(reader, "SENTENCES", False):
        raise DataError(f"no such file or folder: {listing(absent)}")
    rows = model.predict(inputs)
    if rows and all(row["error"] for row in rows):
        raise DataError(f"none of the {len(rows)} inputs could be read; the first: {rows[0]['error']}")
    if output is not None:
        write_rows(rows, output)
    if plot is not None and draw is not None:
        draw(model.spec, inputs, rows, plot)
    return rows
