"""Define what commands share: the types of their options, and the decorator that makes a command."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, TextIO, get_type_hints

import typer

from fmeco.cli.signals import INTERRUPTED
from fmeco.cli.signals import signals as signals
from fmeco.errors import ConfigError, Elsewhere, FmecoError, Stopped, clean, escaped, escaped_json
from fmeco.files import DISK_ERRNOS, disk_error

Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="K=V", help="Override a config key, as in --set optimizer.lr=3e-4. Repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's directory (default: runs/STAGE-NAME-TIME).")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing run or file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Plugins = Annotated[
    list[Path], typer.Option("--plugin", metavar="PATH", help="Load plug-ins from a file or folder. Repeatable.")
]
Partial = Annotated[bool, typer.Option("--allow-partial", help="Load the weights that fit, even if they are few.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Download nothing: refuse files that are not on this machine.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Nproc = Annotated[
    int | None, typer.Option("--nproc", metavar="N", min=1, help="Train with N processes on this machine, one per GPU.")
]
From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="REF", help="Start from a run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS."
    ),
]
Datasets = Annotated[list[str], typer.Option("--dataset", metavar="X", help="A folder, a table, or a dataset's name.")]
Ref = Annotated[str, typer.Argument(metavar="REF")]


def one_dataset(dataset: Sequence[str]) -> str | None:
    """Return the value of `--dataset`, if any. Raises ConfigError if it was given more than once."""
    if len(dataset) > 1:
        raise ConfigError("--dataset was given more than once", "for several tasks, pass one config per task")
    return dataset[0] if dataset else None


# ---------------------------------------------------------------- the decorator

Show = Callable[[Any], None]


class Shown(NamedTuple):
    """Hold a result, and the function that prints it, for commands that answer in several forms."""

    result: Any
    show: Show


def command(
    show: Show | None = None, *, plugins: bool = True, downloads: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Turn a function that takes its own options and returns a result into a command.

    show: prints the result; a `Shown` brings its own printer.
    plugins: whether the command takes --plugin.
    downloads: whether the command may download files, so that it takes --offline.

    --json and --debug are added to every command. With --json, the result is printed as one JSON object. A failure ends
    with a message and an exit code.
    """

    def make(work: Callable[..., Any]) -> Callable[..., None]:
        def run(
            *, json_: bool, debug: bool, plugin: Sequence[Path] = (), offline: bool = False, **options: Any
        ) -> None:
            with _offline() if offline else contextlib.nullcontext():
                _answer(functools.partial(work, **options), show, json_, debug, plugin)

        command_line: Any = functools.update_wrapper(run, work)
        shared: list[tuple[str, Any, Any]] = [("plugin", Plugins, [])] if plugins else []
        shared += [("offline", Offline, False)] if downloads else []
        shared += [("json_", Json, False), ("debug", Debug, False)]
        hints = get_type_hints(work, include_extras=True)
        parameters = [
            *(
                parameter.replace(annotation=hints[name])
                for name, parameter in inspect.signature(work).parameters.items()
            ),
            *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, a, d in shared),
        ]
        command_line.__signature__ = inspect.Signature(parameters)  # what typer reads
        command_line.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del command_line.__wrapped__
        return run

    return make


def _offline() -> contextlib.AbstractContextManager[None]:
    """Refuse downloads inside the context. Imported when it is needed: the modules for the network take time to load."""
    from fmeco.download import offline

    return offline()


def _answer(
    work: Callable[[], Any], show: Show | None, json_mode: bool, debug: bool, plugin_files: Sequence[Path]
) -> None:
    """Run a command, and print its result."""
    from fmeco.distributed import launch
    from fmeco.log import to_terminal

    launch.keep_memory()
    rank = launch.place().rank
    to_terminal(quiet=rank > 0)  # only rank 0 prints
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal's encoding lacks is shown as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    with _failures(rank, json_mode, debug, plugin_files):
        signals.answered = True
        from fmeco.plugins import registry

        with registry.added(plugin_files):
            result = work()
            if isinstance(result, Shown):
                result, show = result
            if rank > 0:
                return
            if json_mode:
                print(escaped_json(json.dumps(result, ensure_ascii=False, allow_nan=False, default=str)))
            elif show is not None:
                with contextlib.redirect_stdout(Printable(sys.stdout)) if on_terminal() else contextlib.nullcontext():
                    show(result)
            print(end="", flush=True)  # a full disk shows here, not after the exit code is decided


def on_terminal() -> bool:
    """Tell whether stdout is a terminal, not a pipe or file, which get text unchanged."""
    return sys.stdout is not None and sys.stdout.isatty()  # None if it is closed


class Printable(io.TextIOBase):
    """Write text to a terminal, with control characters escaped: a file's text could rewrite what the terminal shows."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        return self.terminal.write(escaped(text.replace("\r\n", "\n")))

    def flush(self) -> None:
        self.terminal.flush()


@contextlib.contextmanager
def _failures(rank: int, json_mode: bool, debug: bool, plugin_files: Sequence[Path]) -> Iterator[None]:
    """Turn any failure within the context into a message and an exit code."""
    try:
        yield
    except FmecoError as error:
        if debug:
            traceback.print_exc()
        if rank > 0 and isinstance(error, ConfigError | Stopped | Elsewhere):  # rank 0 prints the message
            raise typer.Exit(error.exit_code) from None
        prefix = f"rank {rank}: " if rank > 0 else ""
        _fail(error.exit_code, error.code, prefix + error.message, error.hints, json_mode and rank == 0)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "interrupted", "interrupted", (), json_mode)
    except BrokenPipeError:
        os._exit(1)
    except SystemExit as error:
        if not (where := _outside(error)):
            raise
        _fail(ConfigError.exit_code, ConfigError.code, f"the plug-in {where} ended the program", (), json_mode)
    except typer.BadParameter:  # a wrong value of an option: typer prints the message
        signals.answered = False
        raise
    except BaseException as error:  # a panic inside a library is no Exception
        if debug:
            traceback.print_exc()
        what = f"{type(error).__name__}: {clean(error)}"
        if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
            failure = disk_error(error, Path(error.filename or "the output"))
            _fail(failure.exit_code, failure.code, failure.message, failure.hints, json_mode)
        if where := _outside(error):
            hint = "--debug shows the traceback; `python -m fmeco.testing FILE.py` checks a plug-in"
            _fail(ConfigError.exit_code, ConfigError.code, f"the plug-in {where} failed: {what}", (hint,), json_mode)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        others = ", ".join(clean(path) for path in plugin_files)
        _fail(
            1,
            "bug",
            f"a bug in fmeco{f', or in the plug-in {others}' if others else ''}: {what} ({Path(frame.filename).name}:{frame.lineno})",
            (
                f"`python -m fmeco.testing {others}` shows whether the plug-in keeps the promises of its kind"
                if others
                else "",
                "please report it, with the traceback that --debug shows",
            ),
            json_mode,
        )


def _outside(error: BaseException) -> str:
    """Return FILE:LINE of the last frame in a plug-in outside fmeco that an error passed through, or ""."""
    from fmeco.plugins import registry

    places = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if registry.is_outside(frame.f_globals.get("__name__", ""))
    ]
    return places[-1] if places else ""


def _fail(exit_code: int, code: str, message: str, hints: Sequence[str], json_mode: bool) -> NoReturn:
    """Print an error with its hints, as JSON too if asked, and exit."""
    hints = [hint for hint in hints if hint]
    error = {"error": {"code": code, "message": escaped(message), "hints": [escaped(hint) for hint in hints]}}
    print_all(json.dumps(error, ensure_ascii=False) if json_mode else "", sys.stdout)
    lines = message.splitlines()
    head = "stopped" if code == Stopped.code else "error"
    parts = [
        f"{head}: {lines[0]}" if len(lines) == 1 else f"{head}:\n" + "\n".join(f"  {line}" for line in lines),
        *(f"  hint: {hint}" for hint in hints),
    ]
    print_all(escaped("\n".join(parts)), sys.stderr)
    raise typer.Exit(exit_code)


def print_all(text: str, stream: TextIO) -> OSError | None:
    """Print a text, if there is any, and what was printed before. Returns the error if the stream takes no more.

    Then nothing is left for Python to write at exit: it would fail again, and change the exit code.
    """
    try:
        print(text, end="\n" if text else "", file=stream, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None
