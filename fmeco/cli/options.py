"""What commands share: the types of their options, the decorator that makes a command, and signals."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple, NoReturn, get_type_hints

import typer

from fmeco.errors import STOPPING, ConfigError, Elsewhere, FmecoError, Stopped, clean

Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="K=V", help="Override a config key, as in --set optimizer.lr=3e-4."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's directory (default: runs/STAGE-NAME-TIME).")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run or file there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Plugins = Annotated[
    list[Path], typer.Option("--plugin", metavar="PATH", help="Use a plug-in from a file, or those of a folder.")
]
Partial = Annotated[bool, typer.Option("--allow-partial", help="Load what fits, even if it is little.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Nproc = Annotated[
    int | None, typer.Option("--nproc", metavar="N", min=1, help="Train with N processes (GPUs) of this machine.")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="REF", help="A run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS."),
]
Datasets = Annotated[list[str], typer.Option("--dataset", metavar="X", help="A folder, a table, or a dataset's name.")]
Ref = Annotated[str, typer.Argument(metavar="REF")]


def one_dataset(dataset: Sequence[str]) -> str | None:
    """Return the dataset of `--dataset`, which may be given once."""
    if len(dataset) > 1:
        raise ConfigError("--dataset was given more than once", "several tasks are several configs")
    return dataset[0] if dataset else None


class Signals:
    """Stop a training loop on the first SIGINT, SIGTERM or SIGUSR1, after it has saved; leave at once on the second."""

    def __init__(self) -> None:
        self.received = False
        self.training = False
        self.answered = False  # a command began: it prints its own answer

    def install(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received or not self.training:
            raise KeyboardInterrupt
        self.received = True
        print("\nstopping after this step; once more to leave at once", file=sys.stderr)

    def stop(self) -> bool:
        """Polled by the loop before each step."""
        self.training = True
        return self.received


signals = Signals()

# ---------------------------------------------------------------- the decorator

Show = Callable[[Any], None]


class Shown(NamedTuple):
    """The result of a command that answers in several forms, with the function that prints this one."""

    result: Any
    show: Show


def command(show: Show | None = None, *, plugins: bool = True) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function that takes its own options and returns a result.

    Added are --plugin (unless `plugins` is false), --json and --debug. With --json the result is printed as one JSON
    object, else by `show`, or by the printer of a `Shown`. A failure ends in a message and an exit code.
    """

    def make(work: Callable[..., Any]) -> Callable[..., None]:
        def run(*, json_: bool, debug: bool, plugin: Sequence[Path] = (), **own: Any) -> None:
            _answer(functools.partial(work, **own), show, json_, debug, plugin)

        made: Any = functools.update_wrapper(run, work)
        added: list[tuple[str, Any, Any]] = [("plugin", Plugins, [])] if plugins else []
        added += [("json_", Json, False), ("debug", Debug, False)]
        hints = get_type_hints(work, include_extras=True)
        parameters = [
            *(own.replace(annotation=hints[name]) for name, own in inspect.signature(work).parameters.items()),
            *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, a, d in added),
        ]
        made.__signature__ = inspect.Signature(parameters)  # what typer reads
        made.__annotations__ = {each.name: each.annotation for each in parameters}
        del made.__wrapped__
        return run

    return make


def _answer(
    work: Callable[[], Any], show: Show | None, json_mode: bool, debug: bool, plugin_files: Sequence[Path]
) -> None:
    """Do a command's work and print its result."""
    from fmeco.distributed import launch
    from fmeco.log import to_terminal

    launch.keep_memory()
    rank = launch.place().rank
    to_terminal(quiet=rank > 0)  # of several ranks one speaks
    signals.answered = True
    with _failures(rank, json_mode, debug):
        from fmeco.plugins import registry

        with registry.added(plugin_files):
            result = work()
            if isinstance(result, Shown):
                result, show = result
            if rank > 0:
                return
            if json_mode:
                print(json.dumps(result, ensure_ascii=False, allow_nan=False, default=str))
            elif show is not None:
                show(result)


@contextlib.contextmanager
def _failures(rank: int, json_mode: bool, debug: bool) -> Iterator[None]:
    """Turn every failure into a message and an exit code."""
    try:
        yield
    except FmecoError as error:
        if debug:
            traceback.print_exc()
        if rank > 0 and isinstance(error, ConfigError | Stopped | Elsewhere):  # rank 0 says the same, or the reason
            raise typer.Exit(error.exit_code) from None
        whose = f"rank {rank}: " if rank > 0 else ""
        _fail(error.exit_code, error.code, whose + error.message, error.hints, json_mode and rank == 0)
    except KeyboardInterrupt:
        _fail(130, "interrupted", "interrupted", (), json_mode)
    except BrokenPipeError:
        os._exit(1)
    except typer.BadParameter:  # a wrong value of an option: typer says it, as for the options that it checks itself
        signals.answered = False
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            1,
            "bug",
            f"a bug in fmeco: {type(error).__name__}: {clean(error)} ({Path(where.filename).name}:{where.lineno})",
            ("run again with --debug for the traceback, and please report it",),
            json_mode,
        )


def _fail(exit_code: int, code: str, message: str, hints: Sequence[str], json_mode: bool) -> NoReturn:
    if json_mode:
        print(json.dumps({"error": {"code": code, "message": message, "hints": list(hints)}}, ensure_ascii=False))
    lines = message.splitlines()
    head = "stopped" if code == Stopped.code else "error"
    print(
        "\n".join(
            [
                f"{head}: {lines[0]}" if len(lines) == 1 else f"{head}:\n" + "\n".join(f"  {line}" for line in lines),
                *(f"  hint: {hint}" for hint in hints),
            ]
        ),
        file=sys.stderr,
    )
    raise typer.Exit(exit_code)
