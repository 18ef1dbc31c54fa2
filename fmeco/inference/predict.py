"""Predict new inputs with a trained model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.config.arguments import checked
from fmeco.core.data import Samples
from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, known_errors
from fmeco.files import replacing
from fmeco.inference import outputs
from fmeco.inference.inputs import sources_of
from fmeco.inference.model import Model, load

Predicting = Callable[[Samples], list[dict[str, Any]]]


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
    tensors: bool = True,
    top: int = 0,
    probabilities: bool = False,
) -> list[dict[str, Any]]:
    """Predict inputs. Returns rows as `Model.predict` does.

    inputs: as for `Model.predict`.
    output: .csv, .jsonl, .parquet or (objects, as COCO) .json file to write the rows to; or, for answers that lie on images, a folder to
        write them to, a file per image, with the other answers in index.csv.
    plot: .png file to draw them in, if the dataset plug-in can.
    force: replace existing files.
    overrides: as for `load`.
    top, probabilities: as for `Model.predict`.
    tensors: keep answers that lie on images in the rows. With `output`, rows never have them, so that many fit into memory.

    Raises DataError if no input could be read, and the errors of `load`.
    """
    drawn = Path(plot) if plot is not None else None
    outputs.check_place("--plot", drawn, (".png",), force)
    model = load(ref, overrides=overrides).detailed(top, probabilities)
    if output is None:
        predicting: Predicting = functools.partial(outputs.predicted, model, tensors=tensors)
    else:
        predicting = _chosen(model, output, force)
    draw = getattr(reader_module(model.spec), "plot", None)
    if drawn is not None and draw is None:
        raise ConfigError(
            f"--plot: predictions for {model.spec.modality} data cannot be drawn", "only those for series can"
        )
    sources = sources_of(inputs, model.spec)
    rows = predicting(model.read(sources))
    if drawn is not None and draw is not None:
        drawable = {row["input"] for row in rows if row["error"] is None}
        with replacing(drawn) as temporary:
            draw(model.spec, [source for source in sources if str(source) in drawable], rows, temporary)
    return rows


def _chosen(model: Model, output: str | Path, force: bool) -> Predicting:
    """Choose what predicts samples and writes the answers to a path.

    Raises ConfigError for a format or a folder that is not for the answers of this model, and for an output that exists.
    """
    reader, path = reader_module(model.spec), Path(output)
    save: Callable[..., Any] | None = getattr(reader, "save", None)
    writes: Mapping[str, Callable[..., None]] = getattr(reader, "WRITES", {})
    if not outputs.is_folder(output):
        outputs.check_place("--output", path, (*outputs.WRITERS, *writes), force, or_folder=save is not None)
        if path.suffix in outputs.WRITERS:
            return functools.partial(outputs.write_rows, model, path=path)
        write = functools.partial(writes[path.suffix], model.spec)
        return functools.partial(outputs.write_answers, model, path=path, write=write)
    if save is None:
        raise ConfigError(
            f"--output {path}: these predictions are rows of a table, and a folder is for answers that lie on images",
            f"name a file: --output {path}.csv",
        )
    outputs.check_folder("--output", path, force)
    return functools.partial(outputs.write_folder, model, folder=path, save=functools.partial(save, model.spec))
