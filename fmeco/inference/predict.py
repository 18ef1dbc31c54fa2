"""Predict new inputs with a trained model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmeco.config.arguments import checked
from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, DataError, known_errors
from fmeco.files import replacing
from fmeco.inference.inputs import Source, sources_of
from fmeco.inference.model import Model, load
from fmeco.inference.outputs import WRITERS, check_place, write_folder, write_rows


@known_errors()
@checked
def predict(
    ref: str | Path,
    inputs: Any,
    *,
    output: str | Path | None = None,
    plot: str | Path | None = None,
    force: bool = False,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Predict inputs. Returns rows as `Model.predict` does.

    inputs: as for `Model.predict`.
    output: .csv, .jsonl or (objects, as COCO) .json file to write the rows to; or, for answers that lie on images, a folder to write them to, a file per
        image, with the other answers in index.csv.
    plot: .png file to draw them in, if the dataset plug-in can.
    force: replace existing files.
    overrides: as for `load`.

    Raises DataError if no input could be read, and the errors of `load`.
    """
    written, drawn = (Path(path) if path is not None else None for path in (output, plot))
    check_place("--output", written, (*WRITERS, ""), force)
    check_place("--plot", drawn, (".png",), force)
    model = load(ref, overrides=overrides)
    draw = getattr(reader_module(model.spec), "plot", None)
    if drawn is not None and draw is None:
        raise ConfigError(
            f"--plot: predictions for {model.spec.modality} data cannot be drawn", "only those for series can"
        )
    sources = sources_of(inputs, model.spec)
    if written is not None and not written.suffix:
        return _into_folder(model, sources, written)
    rows = model.predict(sources)
    if rows and all(row["error"] for row in rows):
        raise DataError(f"none of the {len(rows)} inputs could be read; the first: {rows[0]['error']}")
    if written is not None:
        write_rows(rows, written)
    if drawn is not None and draw is not None:
        drawable = {row["input"] for row in rows if row["error"] is None}
        with replacing(drawn) as temporary:
            draw(model.spec, [source for source in sources if str(source) in drawable], rows, temporary)
    return rows


def _into_folder(model: Model, sources: Sequence[Source], folder: Path) -> list[dict[str, Any]]:
    """Predict, and write the answers that lie on images to a folder. Raises ConfigError for answers that do not."""
    save = getattr(reader_module(model.spec), "save", None)
    if save is None:
        raise ConfigError(
            f"--output {folder}: these predictions are rows of a table, and a folder is for answers that lie on images",
            f"name a file: --output {folder}.csv",
        )
    samples = model.read(sources)
    return write_folder(model, samples, folder, functools.partial(save, model.spec))
