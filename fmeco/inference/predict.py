"""Predict files, folders or tables with a trained model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, DataError, known_errors, listing
from fmeco.files import replacing
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
    """Predict files, folders or tables. Returns rows as `Model.predict` does.

    output: .csv or .jsonl file to write the rows to.
    plot: .png file to draw them in, if the dataset plug-in can.
    force: replace existing files.

    Raises DataError if no input could be read, and the errors of `load`.
    """
    check_place("--output", output, WRITERS, force)
    check_place("--plot", plot, (".png",), force)
    model = load(ref)
    reader = reader_module(model.spec)
    draw = getattr(reader, "plot", None)
    if plot is not None and draw is None:
        raise ConfigError(
            f"--plot: predictions for {model.spec.modality} data cannot be drawn", "only those for series can"
        )
    absent = [path for path in inputs if not os.path.exists(path)]
    if absent and not getattr(reader, "SENTENCES", False):
        raise DataError(f"no such file or folder: {listing(absent)}")
    rows = model.predict(inputs)
    if rows and all(row["error"] for row in rows):
        raise DataError(f"none of the {len(rows)} inputs could be read; the first: {rows[0]['error']}")
    if output is not None:
        write_rows(rows, output)
    if plot is not None and draw is not None:
        with replacing(plot) as temporary:
            draw(model.spec, inputs, rows, temporary)
    return rows
