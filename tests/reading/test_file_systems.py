"""File systems without links, locks or fsync, copies of runs, full disks, and Ctrl-C at any time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.errors import DataError, DiskError, Stopped
from fmeco.log import to_terminal
from tests.conftest import Answer, tiny, write

Fmeco = Callable[..., Answer]
situation = pytest.mark.situation


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and one that was stopped half-way; never changed, only copied."""
    root = tmp_path_factory.mktemp("runs")
    api.pretrain(config(), out=root / "whole")
    halfway(root / "half")
    return root


def config(**changes: Any) -> dict[str, Any]:
    return tiny(train={"epochs": 4, "save_every": 2, "keep": 2, **changes})


def halfway(out: Path) -> None:
    asked: list[int] = []
    with pytest.raises(Stopped):
        api.pretrain(config(), out=out, stop=lambda: bool(asked.append(1)) or len(asked) > 9)


def contents(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights, optimizer and log of a run, however `last` is marked."""
    last = checkpoint.open_checkpoint(checkpoint.steps(run / "checkpoints")[-1])
    tensors = {stem: last.tensors(stem) for stem in ("backbone", "objective", "trainer")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("samples_per_second", "_share")
    return tensors, [{k: v for k, v in line.items() if not k.endswith(timed)} for line in lines]


def assert_same(one: Path, two: Path) -> None:
    (tensors, lines), (others, other_lines) = contents(one), contents(two)
    for stem, named in tensors.items():
        assert all(torch.equal(tensor, others[stem][name]) for name, tensor in named.items()), stem
    assert lines == other_lines


def refusing(code: int, real: Any = None, when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
    """A system call that fails where `when` says so."""

    def call(*arguments: Any, **how: Any) -> Any:
        if when(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **how)

    return call


def is_folder(where: Any) -> bool:
    return os.path.isdir(f"/proc/self/fd/{where}" if isinstance(where, int) else where)


# ---------------------------------------------------------------- no links

NO_LINKS = {"Drive in Colab, SMB": errno.EOPNOTSUPP, "exFAT": errno.EPERM, "AzureML": errno.ENOSYS, "other": errno.EIO}


@situation("file systems without symbolic links", "read rightly")
@pytest.mark.parametrize("system", NO_LINKS)
def test_without_links_a_run_is_trained_resumed_and_used(
    system: str, runs: Path, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "symlink", refusing(NO_LINKS[system]))
    halfway(Path("run"))
    api.resume("run")
    assert_same(Path("run"), runs / "whole")
    folder = Path("run/checkpoints")
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"best", "last"}
    assert len(checkpoint.steps(folder)) <= 3, "old checkpoints are removed"
    wanted = api.evaluate(runs / "whole")
    for ref in ("run", "run/checkpoints", "run/checkpoints/best"):
        found = fmeco("evaluate", ref, "--json")
        assert found.code == 0, found.err
        assert found.json["metrics"] == wanted["metrics"]
        assert Path(found.json["checkpoint"]).name == Path(wanted["checkpoint"]).name
    for command in (
        ["info", "run/checkpoints/last"],
        ["finetune", "--from", "run/checkpoints/last", "--dataset", "digits", "--set", "train.steps=2"],
        ["pretrain", write("c.yaml", config()), "--out", "run", "--force"],
    ):
        answer = fmeco(*command)
        assert answer.code == 0, answer.err


# ---------------------------------------------------------------- copies


def followed(run: Path) -> None:
    """As `scp -r`, `zip -r` and cloud folders copy: each link becomes a folder."""


def as_texts(run: Path) -> None:
    """As a `zip -y` or a clone that is unpacked without links: each link becomes a file with its target."""
    target = {name: os.readlink(run / "checkpoints" / name) for name in ("best", "last")}
    for name, text in target.items():
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).write_text(text + "\n")


def left_out(run: Path) -> None:
    """As object stores and synchronised folders copy: links are left out."""
    for name in ("best", "last"):
        (run / "checkpoints" / name).unlink()


def dangling(run: Path) -> None:
    for name in ("best", "last"):
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).symlink_to("step-99999999")


def damaged(run: Path) -> None:
    for name, text in (("best", "../../../etc"), ("last", "\0" * 5000)):
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).write_text(text)


def only_folders(run: Path) -> None:
    """The folders in place of links are whole; the checkpoint that they are copies of is not."""
    for step in checkpoint.steps(run / "checkpoints"):
        (step / "backbone.safetensors").write_bytes(b"cut")


COPIES = {"folders": followed, "texts": as_texts, "none": left_out, "dangling": dangling, "damaged": damaged}


def copied(run: Path, how: str, out: str) -> Path:
    shutil.copytree(run, out, symlinks=how not in ("folders", "only folders"))
    (only_folders if how == "only folders" else COPIES[how])(Path(out))
    return Path(out)


@situation("copies of a run that lost its links", "read rightly")
@pytest.mark.parametrize("how", [*COPIES, "only folders"])
def test_a_copy_is_evaluated_and_resumed(how: str, runs: Path, fmeco: Fmeco) -> None:
    wanted = api.evaluate(runs / "whole")
    found = fmeco("evaluate", copied(runs / "whole", how, "copy"), "--json")
    assert found.code == 0, found.err
    assert found.json["metrics"] == wanted["metrics"]
    answer = fmeco("resume", copied(runs / "half", how, "half"), "--json")
    assert answer.code == 0, answer.err
    assert_same(Path("half"), runs / "whole")
    assert {name: os.readlink(f"half/checkpoints/{name}") for name in ("best", "last")} == {
        name: os.readlink(runs / "whole/checkpoints" / name) for name in ("best", "last")
    }
    assert not list(Path("half/checkpoints").glob(".*")), "nothing half-written is left"


@situation("copies of a run that lost its links", "said")
@pytest.mark.parametrize("how", ["none", "dangling", "damaged"])
@pytest.mark.parametrize("command", ["evaluate", "info"])
def test_a_checkpoint_that_is_not_marked_is_named(how: str, command: str, runs: Path, fmeco: Fmeco) -> None:
    answer = fmeco(command, copied(runs / "whole", how, "copy"))
    assert answer.code == 0, answer.err
    assert "does not mark its best checkpoint" in answer.err
    assert os.readlink(runs / "whole/checkpoints/best") in answer.err


# ---------------------------------------------------------------- fsync and rename


@situation("file systems without fsync", "read rightly")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_folder_that_cannot_be_synced_is_no_error(call: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, call, refusing(code, getattr(os, call), lambda where, *_: is_folder(where)))
    assert api.pretrain(tiny(train={"epochs": 1}), out="run").checkpoint.is_dir()


@situation("disks that fail before the first step", "refused by name")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_to_sync_is_an_error(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing(code))
    with pytest.raises(DiskError, match="cannot write run/checkpoints"):
        api.pretrain(tiny(), out="run")
    assert not Path("run").exists()


@situation("disks that fail before the first step", "refused by name")
@pytest.mark.parametrize("call", ["rename", "replace"])
@pytest.mark.parametrize("command", ["pretrain", "finetune", "resume"])
def test_what_a_save_needs_is_tried_before_the_first_step(
    call: str, command: str, runs: Path, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"dataset": {"name": "digits", "classes": [3, 4]}, "train": {"epochs": 1}}
    arguments = {
        "pretrain": ["pretrain", write("c.yaml", tiny()), "--out", "run"],
        "finetune": ["finetune", write("f.yaml", task), "--from", runs / "whole", "--out", "run"],
        "resume": ["resume", shutil.copytree(runs / "half", "run", symlinks=True)],
    }[command]
    if command != "resume":
        shutil.rmtree("run")

    def inside(_: Any, target: Any) -> bool:
        return "checkpoints" in str(target) and "config" not in str(target)

    monkeypatch.setattr(os, call, refusing(errno.EOPNOTSUPP, getattr(os, call), inside))
    monkeypatch.setattr("fmeco.training.loop.train", lambda session: pytest.fail("a step was taken"))
    answer = fmeco(*arguments)
    assert answer.code == 7, answer.err
    assert "cannot write run/checkpoints" in answer.err
    assert Path("run").exists() == (command == "resume")


# ---------------------------------------------------------------- locks

# The last number is the kernel's own ENOTSUPP, which has no name in user space.
NO_LOCKS = {"NFS": errno.ENOLCK, "FUSE": errno.ENOSYS, "SMB": errno.EOPNOTSUPP, "old NFS": errno.EBADF, "autofs": 524}


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(getattr(request, "param", errno.ENOLCK)))


def owner(text: str, age: float = 0.0) -> None:
    path = Path("run/.lock-owner")
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def ended() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


@situation("file systems without locks", "said")
@pytest.mark.parametrize("without_locks", NO_LOCKS.values(), ids=list(NO_LOCKS), indirect=True)
def test_without_locks_a_file_stands_in(without_locks: None, runs: Path, fmeco: Fmeco) -> None:
    answer = fmeco("pretrain", write("c.yaml", config()), "--out", "run")
    assert answer.code == 0, answer.err
    assert "this file system has no locks" in answer.err
    assert_same(Path("run"), runs / "whole")
    assert not Path("run/.lock-owner").exists()


@situation("file systems without locks", "refused by name")
@pytest.mark.parametrize("command", [["resume", "run"], ["pretrain", "c.yaml", "--out", "run", "--force"]], ids=str)
@pytest.mark.parametrize("holder", ["this machine", "another machine", "this process"])
def test_without_locks_a_second_process_is_refused(
    command: list[str], holder: str, without_locks: None, runs: Path, fmeco: Fmeco
) -> None:
    from fmeco.training.run_directory import locked

    write("c.yaml", config())
    shutil.copytree(runs / "half", "run", symlinks=True)
    before = contents(Path("run"))[1]
    with contextlib.ExitStack() as stack:
        if holder == "this process":
            stack.enter_context(locked(Path("run")))
        else:
            owner(f"{os.getppid()} on {socket.gethostname()}" if holder == "this machine" else "7 on node12")
        held = Path("run/.lock-owner").read_text()
        answer = fmeco(*command)
        assert Path("run/.lock-owner").read_text() == held
    assert answer.code == 2
    assert f"run is in use by process {held}" in answer.err
    assert "delete run/.lock-owner" in answer.err
    assert contents(Path("run"))[1] == before


@situation("file systems without locks", "read rightly")
@pytest.mark.parametrize("left_by", ["a dead process", "a machine that is gone", "a process long ago", "a full disk"])
def test_a_lock_that_nobody_holds_is_taken(left_by: str, without_locks: None, runs: Path) -> None:
    shutil.copytree(runs / "half", "run", symlinks=True)
    here = socket.gethostname()
    owner(*{
        "a dead process": (f"{ended()} on {here}", 0.0),
        "a machine that is gone": ("7 on node12", 3600.0),
        "a process long ago": (f"{os.getppid()} on {here}", 3600.0),  # the id was given to another process
        "a full disk": ("", 3600.0),
    }[left_by])  # fmt: skip
    api.resume("run")
    assert_same(Path("run"), runs / "whole")


@situation("runs that another process uses", "refused by name")
@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_is_told_from_one_that_cannot_be(
    code: int, runs: Path, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "half", "run", symlinks=True)
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    answer = fmeco("resume", "run")
    assert answer.code == 2
    assert "in use by another process" in answer.err


# ---------------------------------------------------------------- full disks


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to write beyond so many bytes of a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def series(fmeco: Fmeco) -> list[Any]:
    rows = [f"{i},{i * i % 13}" for i in range(120)]
    dataset = {"name": "series", "path": str(write("s.csv", "\n".join(["time,a", *rows]))), "context": 8, "horizon": 4}
    api.pretrain({**tiny(train={"epochs": 1}), "dataset": dataset}, out="series")
    return ["predict", "series", "s.csv", "--plot"]


def table(runs: Path) -> list[Any]:
    rows = [f"{i},{'ab'[i % 2]}" for i in range(40)]
    dataset = {"name": "csv_table", "path": str(write("t.csv", "\n".join(["n,y", *rows]))), "target": "y"}
    api.pretrain({**tiny(train={"epochs": 1}), "dataset": dataset}, out="table")
    return ["predict", "table", "t.csv", "--output"]


# output -> what is run to write it
OUTPUTS: dict[str, Callable[[Path, Fmeco], list[Any]]] = {
    "p.csv": lambda runs, fmeco: [*table(runs), "p.csv", "--force"],
    "p.jsonl": lambda runs, fmeco: [*table(runs), "p.jsonl", "--force"],
    "f.png": lambda runs, fmeco: [*series(fmeco), "f.png", "--force"],
    "e.npz": lambda runs, fmeco: ["embed", runs / "whole", "--output", "e.npz", "--force"],
    "pretrain.yaml": lambda runs, fmeco: ["init", "--force"],
}


@situation("disks that fill up while a file is written", "refused by name")
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "replaced"])
def test_a_file_is_written_whole_or_not_at_all(output: str, earlier: bool, runs: Path, fmeco: Fmeco) -> None:
    arguments = OUTPUTS[output](runs, fmeco)
    if earlier:
        Path(output).write_text("earlier")
    before = {*Path().iterdir(), Path("home")}
    with largest_file(100):
        answer = fmeco(*arguments)
    assert answer.code == 7, answer.err
    assert f"cannot write {output}: the file would be larger than allowed" in answer.err
    assert {*Path().iterdir(), Path("home")} == before
    assert not earlier or Path(output).read_text() == "earlier"
    answer = fmeco(*arguments)
    assert answer.code == 0, answer.err
    assert Path(output).stat().st_size > 100


@situation("disks that fill up while a file is written", "read rightly")
def test_an_output_that_is_a_link_stays_one(runs: Path, fmeco: Fmeco) -> None:
    Path("store").mkdir()
    Path("p.csv").symlink_to("store/real.csv")
    assert fmeco(*table(runs), "p.csv").code == 0
    assert Path("p.csv").is_symlink()
    assert len(Path("store/real.csv").read_text().splitlines()) == 41


@situation("disks that fill up before the first step", "refused by name")
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("folder", ["run", None], ids=["--out", "runs/"])
def test_a_run_that_cannot_begin_leaves_nothing(command: str, folder: str | None, runs: Path, fmeco: Fmeco) -> None:
    source = ["--from", runs / "whole"] if command == "finetune" else []
    path = write("c.yaml", {"dataset": {"name": "digits", "classes": [3, 4]}} if source else tiny())
    with largest_file(100):
        answer = fmeco(command, path, *source, *(["--out", folder] if folder else []))
    assert answer.code == 7, answer.err
    assert "config.yaml: the file would be larger than allowed" in answer.err
    assert not Path("run").exists()
    assert not list(Path("runs").glob("*"))


@situation("disks that fill up during a run", "refused by name")
@pytest.mark.parametrize(("file", "limit"), [("metrics.jsonl", 45_000), ("checkpoints/step-", 20_000)])
def test_a_run_that_fills_the_disk_ends_and_is_resumed(file: str, limit: int, fmeco: Fmeco) -> None:
    many = file == "metrics.jsonl"  # more lines than the file may hold, or more weights
    train = {"epochs": 80 if many else 2, "log_every": 1, "save_every": 40}
    path = write("c.yaml", tiny(train=train, backbone={"name": "mlp", "hidden": [32 if many else 128]}))
    with largest_file(limit):
        answer = fmeco("pretrain", path, "--out", "run")
    assert answer.code == 7, answer.err
    assert f"cannot write run/{file}" in answer.err
    assert "fmeco resume" in answer.err
    for sign in ("Traceback", "Logging error", "bug"):
        assert sign not in answer.err
    answer = fmeco("resume", "run")
    assert answer.code == 0, answer.err
    api.pretrain(path, out="whole")
    assert_same(Path("run"), Path("whole"))


@situation("disks that fill up during a run", "refused by name")
@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_refuses_the_log_ends_the_run_once(
    tensorboard: bool, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first evaluation on, nothing can be written: no message, no metric, no checkpoint."""
    path = write("c.yaml", tiny(train={"epochs": 30, "log_every": 1, "tensorboard": tensorboard}))
    from fmeco.training import loop

    evaluate = loop._evaluate
    full = contextlib.ExitStack()

    def filling(session: Any) -> bool:
        full.enter_context(largest_file(10))
        return evaluate(session)

    monkeypatch.setattr(loop, "_evaluate", filling)
    with full:
        answer = fmeco("pretrain", path, "--out", "run")
    assert answer.code == 7, answer.err
    assert "cannot write run/metrics.jsonl" in answer.err
    assert answer.err.count("error:") == 1
    assert "Traceback" not in answer.err and "Logging error" not in answer.err


PRINTED = [["--help"], ["--version"], ["pretrain", "--help"], ["list"], ["list", "--json"], ["schema"], ["cache"]]


@situation("output that the disk does not take", "refused by name")
@pytest.mark.parametrize("command", [*PRINTED, ["init", "new"]], ids=" ".join)
def test_what_cannot_be_printed_is_an_error(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [sys.executable, "-m", "fmeco", *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert child.returncode == 7, child.stderr
    assert child.stderr == "error: cannot write the output: the disk is full\n"


@situation("output that the disk does not take", "read rightly")
def test_messages_that_cannot_be_printed_do_not_end_a_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        write = refusing(errno.ENOSPC)

    to_terminal()
    monkeypatch.setattr(sys, "stderr", Full())
    api.pretrain(config(), out="run")
    assert_same(Path("run"), runs / "whole")


@situation("output that the disk does not take", "refused by name")
@pytest.mark.parametrize("arguments", [["pretrain", "nowhere.yaml"], ["cache", "none"]], ids=" ".join)
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        child = subprocess.run([sys.executable, "-m", "fmeco", *arguments, "--json"], stdout=-1, stderr=full, text=True)
    assert child.returncode == 2
    assert json.loads(child.stdout)["error"]["code"] == "config"


@situation("output that is closed", "read rightly")
@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["list", "--json"]], ids=" ".join)
def test_closed_output_is_no_error(number: int, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "fmeco", *arguments]
    child = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.close(number))
    assert (child.returncode, child.stderr) == (0, "")
    assert bool(child.stdout) == (number == 2)


# ---------------------------------------------------------------- Ctrl-C

INTERRUPTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, Interrupting())
sys.argv = ["fmeco", *{arguments!r}]
from fmeco.__main__ import main
main()
"""


@situation("Ctrl-C while modules are imported", "refused by name")
@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("typer", "SIGINT"),
        ("fmeco.cli.options", "SIGTERM"),
        ("pydantic", "SIGINT"),
        ("torch", "SIGINT"),
        ("torch._C", "SIGTERM"),
        ("fmeco.training.api", "SIGINT"),
        ("fmeco.datasets.csv_table", "SIGINT"),  # the run has its folder by then
    ],
)
def test_an_interrupted_import_is_no_traceback(module: str, number: str) -> None:
    rows = [f"{i},{'ab'[i % 2]}" for i in range(40)]
    dataset = {"name": "csv_table", "path": str(write("t.csv", "\n".join(["n,y", *rows]))), "target": "y"}
    arguments = ["pretrain", str(write("c.yaml", {**tiny(), "dataset": dataset})), "--json", "--out", "run"]
    code = INTERRUPTING.format(module=module, signal=number, arguments=arguments)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (130, "error: interrupted\n")
    assert json.loads(child.stdout)["error"]["code"] == "interrupted"
    assert not Path("run").exists()


@situation("runs that fail or are interrupted before the first step", "refused by name")
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), DataError("a bad sample")], ids=["Ctrl-C", "data"])
@pytest.mark.parametrize("command", ["pretrain", "finetune", "force"])
def test_a_run_that_fails_in_setting_up_leaves_no_folder(
    failure: BaseException, command: str, runs: Path, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("c.yaml", config() if command != "finetune" else {"dataset": {"name": "digits"}})
    arguments = [path, "--from", runs / "whole"] if command == "finetune" else [path]
    if command == "force":
        shutil.copytree(runs / "whole", "run", symlinks=True)
        arguments += ["--force"]

    def failing(*_: Any) -> None:
        raise failure

    monkeypatch.setattr("fmeco.training.api._announce", failing)
    answer = fmeco("finetune" if command == "finetune" else "pretrain", *arguments, "--out", "run")
    assert answer.code == (3 if isinstance(failure, DataError) else 130), answer.err
    if command == "force":
        assert_same(Path("run"), runs / "whole")
    assert sorted(path.name for path in Path().iterdir() if path.is_dir() and path.name != "home") == (
        ["run"] if command == "force" else []
    )


def one_class() -> Path:
    return write("one.csv", "n,y\n" + "".join(f"{i},a\n" for i in range(9)))


FAILING: dict[str, tuple[Callable[[Path], list[Any]], int]] = {
    "no data": (lambda runs: [write("f.yaml", {"dataset": {"name": "image_folder", "path": "nowhere"}})], 3),
    "an unknown class": (lambda runs: ["--dataset", "digits", "--set", "dataset.classes=[7, 77]"], 2),
    "another modality": (lambda runs: ["--dataset", one_class(), "--set", "dataset.target=y"], 4),
    "a source that is not there": (lambda runs: ["--dataset", "digits", "--from", "nowhere"], 2),
}


@situation("runs that fail or are interrupted before the first step", "refused by name")
@pytest.mark.parametrize("case", FAILING)
@pytest.mark.parametrize("place", [["--out", "run"], []], ids=["--out", "runs/"])
def test_a_failed_finetune_leaves_no_folder(case: str, place: list[str], runs: Path, fmeco: Fmeco) -> None:
    make, code = FAILING[case]
    answer = fmeco("finetune", "--from", runs / "whole", *make(runs), *place)
    assert answer.code == code, answer.err
    assert not Path("run").exists()
    assert not list(Path("runs").glob("*"))


@situation("runs that fail or are interrupted before the first step", "refused by name")
@pytest.mark.parametrize("place", [["--out", "runs/many"], []], ids=["--out", "runs/"])
@pytest.mark.parametrize("several", [["second.yaml"], ["--label-fractions", "0.5,1"]], ids=["tasks", "fractions"])
def test_several_runs_that_fail_leave_no_folder(place: list[str], several: list[str], runs: Path, fmeco: Fmeco) -> None:
    for name in ("first.yaml", "second.yaml"):
        write(name, {"dataset": {"name": "image_folder", "path": "nowhere"}})
    answer = fmeco("finetune", "first.yaml", *several, "--from", runs / "whole", *place)
    assert answer.code == 3, answer.err
    assert not list(Path("runs").iterdir())


@situation("runs that fail or are interrupted before the first step", "read rightly")
def test_files_of_others_stay_where_a_run_failed(runs: Path, fmeco: Fmeco) -> None:
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    task = write("f.yaml", {"dataset": {"name": "image_folder", "path": "nowhere"}})
    answer = fmeco("finetune", task, "--from", runs / "whole", "--out", "run", "--force")
    assert answer.code == 3, answer.err
    assert [path.name for path in Path("run").iterdir() if path.name != ".lock"] == ["notes.txt"]
