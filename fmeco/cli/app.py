"""The command line: every family of commands in this folder. Neither this file nor a family imports torch: help and mistakes
in a config come at once."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import sys
from typing import Annotated

import typer

import fmeco.cli
from fmeco._version import __version__
from fmeco.cli.options import signals


def build() -> typer.Typer:
    """Build the command line of every module in this folder that has a function `register(app)`.

    `ORDER` in a module is its place in `fmeco --help`; a module without it comes last.
    """
    app = typer.Typer(
        help="Transfer learning you can trust: pretrain once, finetune on many tasks.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        epilog="Start with `fmeco demo`, or `fmeco init` in an empty folder.",
    )
    app.callback()(_options)
    names = [found.name for found in pkgutil.iter_modules(fmeco.cli.__path__)]
    modules = [importlib.import_module(f"fmeco.cli.{name}") for name in names]
    families = [module for module in modules if hasattr(module, "register")]
    for family in sorted(families, key=lambda module: getattr(module, "ORDER", math.inf)):
        family.register(app)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fmeco {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options of `fmeco` itself, without a command."""


app = build()


def main() -> None:
    """Run the console script. A wrong option is exit code 2, as every usage error."""
    signals.install()
    try:
        app()
    except SystemExit as end:
        # Words that the parser itself refuses never reach a command; with --json they are an object all the same.
        if end.code == 2 and "--json" in sys.argv and not signals.answered:
            print(
                json.dumps(
                    {"error": {"code": "config", "message": "wrong usage; the reason is on stderr", "hints": []}}
                )
            )
        raise
