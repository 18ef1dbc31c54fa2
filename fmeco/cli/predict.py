"""Use a checkpoint: `fmeco predict` and `fmeco embed`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import Datasets, Force, Ref, Sets, command, one_dataset

ORDER = 3


def register(app: typer.Typer) -> None:
    app.command()(predict)
    app.command()(embed)


def _show_predictions(result: Mapping[str, Any]) -> None:
    from fmeco.inference.outputs import write_csv

    if result["output"] is None:
        write_csv(result["predictions"], sys.stdout)


@command(_show_predictions)
def predict(
    ref: Ref,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders, or tables.")],
    output: Annotated[Path | None, typer.Option(help="A .csv or .jsonl file (default: CSV on stdout).")] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png file, for a picture of forecasts.")] = None,
    force: Force = False,
) -> Any:
    """Predict new files: input, prediction, probability, error."""
    from fmeco.inference import predict as predicting
    from fmeco.log import say

    rows = predicting.predict(ref, inputs, output=output, plot=plot, force=force)
    if failed := sum(row["error"] is not None for row in rows):
        say(f"{failed} of {len(rows)} inputs could not be read; see the column `error`")
    if output is not None:
        say(f"{len(rows)} rows in {output}")
    return {"predictions": rows, "output": str(output.resolve()) if output else None}


@command(lambda result: print(f"{result['samples']} x {result['width']} features in {result['output']}"))
def embed(
    ref: Ref,
    output: Annotated[Path, typer.Option(help="An .npz file: features, names, labels.")],
    dataset: Datasets = [],
    split: Annotated[str | None, typer.Option(help="train, val or test.")] = None,
    set_: Sets = [],
    force: Force = False,
) -> Any:
    """Write the backbone's features of a dataset to a file."""
    from fmeco.inference import embed as embedding

    return embedding.embed(ref, dataset=one_dataset(dataset), output=output, split=split, overrides=set_, force=force)
