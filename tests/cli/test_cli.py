"""The command line: families of commands, the options that all share, and tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import fmeco as api
from fmeco import cli as folder
from fmeco.cli import app as cli
from fmeco.cli.tables import table
from fmeco.config import load, parser
from fmeco.config.run_config import PLUGIN_SECTIONS, TOP_KEYS
from fmeco.config.sections import Carry
from fmeco.plugins.registry import plugins
from tests.conftest import Answer, tiny, write

Fmeco = Callable[..., Answer]

FAMILY = '''
from typing import Annotated, Any
import typer
from fmeco.cli.options import command, Sets

def register(app):
    app.command()(shout)

@command(lambda result: print(result["loud"]))
def shout(word: str, set_: Sets = [], times: Annotated[int, typer.Option(help="How often.")] = 1) -> Any:
    """Say it louder."""
    return {"loud": word.upper() * times + "".join(set_)}
'''


def test_a_file_dropped_into_the_folder_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("extra").mkdir()
    write("extra/shouting.py", FAMILY)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(Path("extra").resolve())])
    app = cli.build()

    def run(*words: str) -> str:
        return CliRunner().invoke(app, words).stdout

    assert run("shout", "ha", "--times", "2", "--set", "x") == "HAHAx\n"
    assert run("shout", "ha", "--json") == '{"loud": "HA"}\n'
    shown = run("shout", "--help")
    places = [shown.index(word) for word in ("Say it louder.", "--set", "How often.", "--plugin", "--json", "--debug")]
    assert places == sorted(places), "own options come first"
    names = list(get_command(app).commands)  # type: ignore[attr-defined]
    assert names[:3] == ["pretrain", "finetune", "resume"]
    assert names[-1] == "shout"
    del sys.modules["fmeco.cli.shouting"]


def test_every_module_but_the_shared_ones_is_a_family() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("[!_]*.py")} - {"app", "options", "signals", "tables"}
    assert all(hasattr(sys.modules[f"fmeco.cli.{stem}"], "register") for stem in files)


def test_a_table_aligns_cells() -> None:
    rows = [["run", "accuracy"], ["a/long/name", "0.5"]]
    assert table(rows).splitlines() == ["run          accuracy", "a/long/name       0.5"]
    assert table(rows, ["<", ">10"]).splitlines()[0] == "run            accuracy"
    assert table(rows, ["<4", "<"], gap=" ", widest=4).splitlines() == ["run  accuracy", "a/long/name 0.5"]
    assert table([]) == ""


def test_a_command_reads_and_checks_each_config_once(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    read = parser.read_tree
    monkeypatch.setattr(load, "read_tree", lambda source: (opened.append(str(source)), read(source))[1])
    for name in ("c", "d"):
        write(f"{name}.yaml", tiny(train={"epochs": 1}))
    assert fmeco("pretrain", "c.yaml", "--out", "run").code == 0
    assert opened.count("c.yaml") == 1
    assert fmeco("check", "c.yaml", "d.yaml", "--from", "run").code == 0
    assert (opened.count("c.yaml"), opened.count("d.yaml")) == (2, 1)
    assert fmeco("finetune", "c.yaml", "--from", "run", "--label-fractions", "0.5,1", "--out", "many").code == 0
    assert opened.count("c.yaml") == 3


def test_version(fmeco: Fmeco) -> None:
    assert fmeco("--version").out == f"fmeco {api.__version__}\n"
    assert api.__version__[0].isdigit()


def test_list_and_describe_say_what_there_is(fmeco: Fmeco) -> None:
    for command in ("list", "describe"):
        answer = fmeco(command)
        assert answer.code == 0, answer.err
        assert re.search(r"optimizers +[0-9]+  adadelta, adafactor", answer.out)
    assert fmeco("list", "--json").json["schedules"][0] == "constant"
    assert re.search(
        r"train +Configure training: its length, batches, device, precision and checkpoints.\n", answer.out
    )
    shown = fmeco("describe", "optimizer").out
    assert re.search(r"adamw +Adam with decoupled weight decay", shown)
    assert fmeco("describe", "section").out in answer.out


@pytest.mark.parametrize("name", TOP_KEYS)
def test_every_section_of_a_config_is_described(name: str, fmeco: Fmeco) -> None:
    answer = fmeco("describe", "section", name)
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"{name}: ")
    found = fmeco("describe", "section", name, "--json").json
    assert len(found["help"]) > 20
    assert found["keys"] or found["default"]
    if name in PLUGIN_SECTIONS:
        assert f"`{found['pick']}:` picks the plug-in" in answer.out
        assert set(found["plugins"]) == set(plugins(PLUGIN_SECTIONS[name]))


def test_the_section_of_transfer_has_the_keys_of_every_strategy(fmeco: Fmeco) -> None:
    found = fmeco("describe", "section", "transfer", "--json").json
    assert found["default"] == "full"
    assert set(found["keys"]) == set(Carry.model_fields)
    assert fmeco("describe", "section", "seed", "--json").json["default"] == "0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["section", "trian"], "did you mean 'train'"),
        (["section", "datasets"], "did you mean 'dataset'"),
        (["sectoin"], "did you mean 'section'"),
        (["optimiser"], "did you mean 'optimizer'"),
        (["train"], "fmeco describe section train"),
        (["schedule", "cosin"], "did you mean 'cosine'"),
    ],
)
def test_a_wrong_name_gets_the_nearest(words: list[str], said: str, fmeco: Fmeco) -> None:
    answer = fmeco("describe", *words)
    assert answer.code == 2
    assert said in answer.err
