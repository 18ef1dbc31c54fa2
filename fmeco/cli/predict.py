"""Use a checkpoint: `fmeco predict` and `fmeco embed`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import Datasets, Force, Ref, Sets, command, one_dataset
from fmeco.errors import ConfigError

ORDER = 3


def register(app: typer.Typer) -> None:
    app.command()(predict)
    app.command()(embed)


def _show_predictions(result: Mapping[str, Any]) -> None:
    from fmeco.inference.outputs import write_csv

    if result["output"] is None:
        write_csv(result["predictions"], sys.stdout)


@command(_show_predictions, downloads=True)
def predict(
    ref: Ref,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Files, folders, or tables; `-` reads their names, one per line."),
    ],
    output: Annotated[
        str | None,  # a path would forget a slash at the end, which says that it is a folder
        typer.Option(
            metavar="PATH",
            help="A .csv, .jsonl or .parquet file to write, .json for objects in COCO form, or a folder for masks and drawings (default: CSV on stdout).",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=0, metavar="K", help="Add the K most probable classes.")] = 0,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add the probability of every class.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A .png file to draw forecasts in.")] = None,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="K=V", help="Change how the objective answers, as in --set objective.score=0.5."),
    ] = [],
    force: Force = False,
) -> Any:
    """Predict new inputs. Prints or writes input, prediction, probability and error."""
    from fmeco.inference import predict as predicting
    from fmeco.inference.outputs import WRITERS, is_folder
    from fmeco.log import say

    if inputs == ["-"]:
        inputs = _listed()
    rows = predicting.predict(
        ref,
        inputs,
        output=output,
        plot=plot,
        force=force,
        overrides=set_,
        tensors=False,
        top=top,
        probabilities=probabilities,
    )
    failed = {row["input"]: row["error"] for row in rows if row["error"] is not None}
    if failed:
        count = len({row["input"] for row in rows})
        has_errors = output is None or is_folder(output) or Path(output).suffix in WRITERS
        where = (
            "see the column `error`"
            if has_errors
            else f"they are not in {output}; the first: {next(iter(failed.values()))}"
        )
        say(f"{len(failed)} of {count} inputs could not be read; {where}")
    if output is not None:
        say(f"wrote {len(rows)} rows to {output}")
    return {"predictions": rows, "output": str(Path(output).resolve()) if output else None}


def _listed() -> list[str]:
    """Read names of inputs, or texts, from the standard input. Raises ConfigError for an empty line, and for none."""
    text = os.fsdecode(sys.stdin.buffer.read())
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if not text:
        raise ConfigError("- reads names of inputs from the standard input, one per line, and there are none")
    if "" in lines:
        raise ConfigError(f"-: line {lines.index('') + 1} of the standard input is empty", "leave such lines out")
    return lines


@command(
    lambda result: print(f"{result['samples']} x {result['width']} features in {result['output']}"), downloads=True
)
def embed(
    ref: Ref,
    output: Annotated[Path, typer.Option(help="The .npz file to write: features, names, labels.")],
    dataset: Datasets = [],
    split: Annotated[
        str | None, typer.Option(help="train, val or test (default: test if there is one, else val).")
    ] = None,
    set_: Sets = [],
    force: Force = False,
) -> Any:
    """Write the features of a dataset to a file: those of a checkpoint, a file of weights, or published weights."""
    from fmeco.inference import embed as embedding

    return embedding.embed(ref, dataset=one_dataset(dataset), output=output, split=split, overrides=set_, force=force)
