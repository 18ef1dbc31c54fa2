"""Fetch published files for a machine without a network: `fmeco fetch`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import Datasets, Force, command, one_dataset
from fmeco.errors import clean, listing

ORDER = 5


def register(app: typer.Typer) -> None:
    app.command()(fetch)


def _show(result: Mapping[str, Any]) -> None:
    licence = f"; licence: {clean(result['licence'])}" if result["licence"] else ""
    print(f"{clean(result['out'])}: {listing(result['files'], 20) or 'nothing to fetch'}{licence}")


@command(_show, downloads=True)
def fetch(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="Published weights: SOURCE/ARCH@WEIGHTS.")] = None,
    dataset: Datasets = [],
    force: Force = False,
) -> Any:
    """Fetch published weights into a folder that is a REF without a network, or a published dataset."""
    from fmeco.checkpoints import fetching

    return fetching.fetch(ref, out=out, dataset=one_dataset(dataset), force=force)
