"""`python -m fmeco.testing` passes plug-ins that keep their promises, and names each promise that one breaks."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from pathlib import Path

import pytest

import fmeco as api
from fmeco.config.check import choose
from fmeco.core import Augment, Backbone, Constraint, Features, InputSpec, Objective, Samples, Transfer, View
from fmeco.core.target import KINDS
from fmeco.plugins import registry
from fmeco.testing import __main__ as command
from fmeco.testing.bench import build_data, pick, with_targets
from fmeco.testing.check_plugin import check_plugin

from ..conftest import write

ROOT = Path(__file__).parents[2]
PACKAGE = Path(api.__file__).parent
STRANGERS = ROOT / "tests/strangers"
DOCS = ROOT / "docs/plugins.md"


@functools.cache
def documented() -> dict[str, str]:
    """The plug-ins of the documentation, by file name."""
    return {
        name: f"# {text}" for name, text in re.findall(r"```python\n# (\w+\.py)(.*?)```", DOCS.read_text(), re.DOTALL)
    }


def test_plugins_of_the_tests_keep_their_promises() -> None:
    assert check_plugin(STRANGERS) == []
    assert not registry._EXTRA, "they are known within the check alone"


def test_every_example_of_the_documentation_keeps_its_promises() -> None:
    texts = documented()
    assert len(texts) == len(re.findall("```python", DOCS.read_text())), (
        "the first comment of a block is its file's name"
    )
    for name, text in texts.items():
        write(f"plugins/{name}", text)
    assert check_plugin("plugins") == []
    kinds = {registry.add_file(Path("plugins") / name).kind for name in texts}
    assert kinds == set(registry.INJECTED), "each kind"


def test_the_config_of_the_documentation_trains_all_of_them() -> None:
    for name, text in documented().items():
        write(f"plugins/{name}", text)
    registry.add(Path("plugins"))
    plugin = registry.plugins("datasets")["dna"]
    plugin.load().example(Path())
    [text] = re.findall(r"```yaml\n(# fmeco pretrain.*?)```", DOCS.read_text(), re.DOTALL)
    run = api.pretrain(write("dna.yaml", text), out="run", overrides=["train.tensorboard=false"])
    assert run.metrics["val_accuracy"] > 0.8
    tuned = api.finetune(
        {"dataset": {"name": "dna", "path": "reads.txt"}, "transfer": "surgical"}, ref="run", out="tuned"
    )
    assert tuned.metrics["val_accuracy"] > 0.5
    rows = api.load("run").predict([write("new.txt", "ACGTTATAAGCA\nACCCCCGA\n")])
    assert [row["prediction"] for row in rows] == ["box", "none"]


def test_the_table_of_optional_names_is_complete() -> None:
    table = DOCS.read_text().split("## All optional names")[1].split("\n## ")[0]
    named = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]*)`", table))))
    source = "".join(file.read_text() for file in PACKAGE.rglob("*.py") if file.parent.name != "cli")
    literals = set(re.findall(r'literal\(tree, "(\w+)"', source)) - {"KIND"}
    functions = set(re.findall(r'getattr\((?:module|reader|[\w.]*\.load\(\)|reader_module\(spec\)), "(\w+)"', source))
    assert literals and {"read", "check", "suits", "example"} <= functions
    assert literals | functions <= named
    needed = {
        "width",
        "directions",
        "forward",
        "backbone",
        "shape",
        "dtype",
        "phases",
        "pooled",
        "tokens",
        "mask",
        "vector",
        "side",
    }
    for kind in (Augment, Backbone, Constraint, Features, InputSpec, Objective, Samples, Transfer, View):
        own = {*vars(kind), *inspect.get_annotations(kind)} - set(dir(tuple)) - {"name"}
        own -= getattr(kind, "__abstractmethods__", frozenset())
        absent = {name for name in own if not name.startswith("_") and f"{kind.__name__}.{name}" not in named}
        optional = {"vector", "tokens", "mask"} if kind in (Objective, Backbone, Samples) else set()
        assert absent - (needed - optional) == set(), kind


# ---------------------------------------------------------------- the command


def test_the_command_prints_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    texts = documented()
    lion = write("lion.py", texts["lion.py"])
    assert command.main([str(lion), "--set", "lr=1e-3"]) == 0
    assert capsys.readouterr().out == "ok    lion.py: signature, rates, a step, saving and loading\n"
    write("lion.py", texts["lion.py"].replace("alpha=-group", "alpha=0 * group"))
    for name in [name for name in sys.modules if name.endswith(".lion")]:
        del sys.modules[name]
    assert command.main([str(lion)]) == 1
    held, fails = capsys.readouterr().out.splitlines()
    assert held == "ok    lion.py: signature, rates, saving and loading"
    assert fails.startswith("FAIL  lion.py: a step: a step does not move")
    assert command.main([str(lion), "--set", "lr"]) == 2
    assert "write it as --set KEY=VALUE" in capsys.readouterr().err
    assert command.main([str(lion), "--set", "rl=1"]) == 1
    assert "FAIL  lion.py: build: optimizer.rl: unknown key; valid keys: lr, weight_decay" in capsys.readouterr().out
    assert command.main([str(STRANGERS), "--set", "lr=1"]) == 2
    assert "holds 6 plug-ins: keys (--set) belong to one file" in capsys.readouterr().err
    assert command.main(["nothing.py"]) == 1
    assert "nothing.py: read: --plugin nothing.py: no such file" in capsys.readouterr().out


def test_what_a_plugin_needs_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("motifs.py", "dna.py"):
        write(name, documented()[name])
    assert command.main(["motifs.py"]) == 1
    said = capsys.readouterr().out
    assert "it takes none of the data there is (the backbone motifs takes reads of DNA)" in said
    assert "give its dataset with --plugin or --dataset" in said
    assert command.main(["motifs.py", "--plugin", "dna.py", "--set", "width=8"]) == 0
    assert "output for dna (width 8)" in capsys.readouterr().out


def test_a_library_is_checked_by_its_first_name() -> None:
    text = documented()["inverse_sqrt.py"].replace("KIND =", 'NAMES = ("a", "b")\nKIND =')
    assert check_plugin(write("inverse_sqrt.py", text)) == []


# ---------------------------------------------------------------- the data to check with


@pytest.mark.parametrize(
    "name", [one.name for one in registry.plugins("datasets").values() if hasattr(one.load(), "example")]
)
def test_built_in_examples_keep_the_promises_of_a_dataset(name: str) -> None:
    if name == "audio":
        pytest.importorskip("soundfile")
    if name == "text":
        pytest.importorskip("tokenizers")
    file = PACKAGE / f"datasets/{name}.py"
    # Its names of single datasets are taken, unless a config must write them behind the name of the file.
    text = file.read_text().replace("\n\n\ndef ", '\nKIND = "dataset"\nQUALIFIED = True\n\n\ndef ', 1)
    assert check_plugin(write(f"my_{name}.py", text)) == []


def test_built_in_examples_hold_every_modality() -> None:
    known = registry.plugins("datasets").values()
    having = {one.modality for one in known if hasattr(one.load(), "example")}
    assert having == {one.modality for one in known} - {""}


def test_targets_of_every_kind_are_generated() -> None:
    data = build_data(pick(registry.plugins("datasets")["fake_images"], {"samples": 12}))
    made = dict(with_targets(data))
    assert {one.spec.targets["label"].kind for words, one in made.items() if words != "its own targets"} == set(KINDS)
    names = {"class": "classification", "multilabel": "multilabel", "number": "regression"}
    for kind, name in names.items():
        options = choose("objective", name).options
        assert options["target"] in made[f"a target of kind {kind}"].spec.targets
