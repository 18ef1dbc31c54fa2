"""A config means what it says, or is refused with its line and the nearest valid name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fmeco.config.check import choose
from fmeco.config.load import load_config
from fmeco.config.parser import parse_yaml
from fmeco.errors import ConfigError
from tests.conftest import Answer, tiny, write

ROOT = Path(__file__).parents[2]
GOOD = "dataset: {name: digits}\nbackbone: mlp\n"


def error(text: str, **how: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write("c.yaml", text), **{"stage": "pretrain", **how})  # type: ignore[arg-type]
    return caught.value.message


# text -> everything the message must hold
BAD = {
    "dataset: {name: digits}\nbakbone: mlp\n": ["c.yaml:2", "bakbone", "did you mean 'backbone'", "backbone: missing"],
    "dataset: {name: digits}\nbackbone: resnet81\n": [
        "c.yaml:2",
        "backbone.name",
        "resnet81",
        "did you mean 'resnet18'",
    ],
    GOOD + "train: {epoch: 3}\n": ["c.yaml:3", "train.epoch", "did you mean 'epochs'"],
    GOOD + "train: {epochs: three}\n": ["c.yaml:3", "train.epochs", "a number", "'three'"],
    GOOD + "train: {epochs: true}\n": ["train.epochs", "a number", "true"],
    GOOD + "train: {steps: 1.5}\n": ["train.steps", "a whole number", "1.5"],
    GOOD + "train: {epochs: 3, steps: 10}\n": ["train", "one of epochs, steps and budget"],
    GOOD + "train: {budget: soon}\n": ["budget must be a time", "soon"],
    GOOD + "train: {epochs: .inf}\n": ["train.epochs", "finite"],
    GOOD + "train: {epochs: .nan}\n": ["train.epochs", "finite"],
    GOOD + "train: {batch_size: huge}\n": ["train.batch_size", "a whole number or auto or full", "'huge'"],
    GOOD + "train: {batch_size: 0}\n": ["batch_size must be positive"],
    GOOD + "train: {device: gpu}\n": ["train.device", "auto", "cuda", "'gpu'"],
    GOOD + "optimizer: {name: adamw, lr: -1}\n": ["c.yaml:3", "optimizer.lr", "> 0", "-1"],
    GOOD + "optimizer: {name: adamw, learning_rate: 1}\n": ["optimizer.learning_rate", "unknown key", "lr"],
    GOOD + "optimizer: {name: rmspropp}\n": ["optimizer.name", "did you mean 'rmsprop'"],
    "dataset: {image_size: 8}\nbackbone: mlp\n": ["dataset", "missing", "name"],
    GOOD + "optimizer: 3\n": ["optimizer", "a name or a section", "3"],
    GOOD + "seed: -1\n": ["seed", "whole number"],
    GOOD + "seed: 0\nseed: 1\n": ["c.yaml:4", "seed", "given twice"],
    GOOD + "stage: finetune\n": ["stage", "fmeco finetune"],
    GOOD + "transfer: full\n": ["transfer", "--from"],
    GOOD + "a: &x 1\nb: *x\n": ["c.yaml:3", "anchors"],
    GOOD + "train: !!python/object:os.system {}\n": ["c.yaml:3", "tags"],
    GOOD + "---\nother: 1\n": ["more than one document"],
    GOOD + "train: [1, 2\n": ["not valid YAML"],
    "- dataset\n": ["a mapping"],
    "x: " + "[" * 3000 + "\n": ["too deep"],
    "x: " + "a" * 300_000 + "\n": ["larger than 256 KB"],
    "dataset: {name: csv_table}\nbackbone: mlp\n": ["c.yaml:1", "dataset.path", "missing"],
    "dataset: {name: digits, split: {fold: x}}\nbackbone: mlp\n": ["dataset.split.fold", "whole number"],
    "dataset: {name: torchvision}\nbackbone: mlp\n": ["torchvision/NAME"],
}


@pytest.mark.parametrize("text", list(BAD), ids=lambda text: text[:40].replace("\n", " "))
def test_mistakes(text: str) -> None:
    message = error(text)
    for part in BAD[text]:
        assert part in message


def test_every_mistake_is_reported_at_once() -> None:
    message = error(GOOD + "trian: {}\noptimizer: {name: adamw, lr: abc}\ntrain: {epoch: 1, workers: x}\nseed: 1.5\n")
    assert len(message.splitlines()) == 5


def test_scalars_are_read_as_yaml_1_2() -> None:
    tree, _ = parse_yaml("[1e-3, no, 0123, 1:30, 2026-11-23, 0x1F, ~, 'true', true, 1_0]", "x")
    assert tree == [0.001, "no", "0123", "1:30", "2026-11-23", "0x1F", None, "true", True, 10]


def test_set_overrides_and_expands_bare_names() -> None:
    path = write("c.yaml", GOOD + "optimizer: adamw\ntrain: {epochs: 3}\n")
    got = load_config(
        path, overrides=["optimizer.lr=3e-4", "train.epochs=7", "backbone=resnet18", "dataset.classes=[1, 2]"]
    )
    assert got.optimizer.options["lr"] == 3e-4
    assert got.train.epochs == 7
    assert got.backbone is not None
    assert got.backbone.spelled == "torchvision/resnet18"
    assert got.dataset is not None
    assert got.dataset.options["classes"] == [1, 2]
    for bad in ("optimizer.lr", "=3", "train.epochs.x=1", "optimizer.lr=[1"):
        with pytest.raises(ConfigError, match="--set"):
            load_config(path, overrides=[bad])


def test_what_is_written_is_what_ran() -> None:
    got = load_config(tiny(), stage="pretrain", name="x")
    again = load_config(write("again.yaml", got.to_yaml()), name="x")
    assert again == got


def test_every_config_of_the_repository_is_valid_and_states_its_command() -> None:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        text = file.read_text()
        stage = "finetune" if "fmeco finetune" in text.splitlines()[0] else "pretrain"
        assert f"fmeco {stage} {file.relative_to(ROOT)}" in text.splitlines()[0]
        load_config(file, stage=stage, given={"from": "x"} if stage == "finetune" else None)  # type: ignore[arg-type]


def test_schema_accepts_what_load_accepts(fmeco: Callable[..., Answer]) -> None:
    schema = json.loads(fmeco("schema").out)
    assert {"dataset", "backbone", "train", "seed"} <= set(schema["properties"])
    names = schema["properties"]["backbone"]["anyOf"][0]["enum"]
    assert {"mlp", "resnet18", "torchvision/resnet18"} <= set(names)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["pretrain", "--help"],
        ["list"],
        ["list", "backbones"],
        ["describe"],
        ["describe", "backbones"],
        ["describe", "section", "backbone"],
        ["describe", "optimizer", "adamw"],
        ["schema"],
        ["pretrain", "bad.yaml"],
        ["init", "new"],
    ],
    ids=" ".join,
)
def test_commands_that_need_no_torch_do_not_import_it(arguments: list[str]) -> None:
    write("bad.yaml", GOOD + "train: {epoch: 1}\n")
    heavy = {"torch", "numpy", "sklearn", "PIL", *(["fmeco.config"] if arguments[-1].startswith("--") else [])}
    code = (
        "import sys; from fmeco.cli.app import main\n"
        f"sys.argv = ['fmeco', *{arguments!r}]\n"
        "try: main()\n"
        f"finally: assert not {heavy!r} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AssertionError" not in done.stderr, done.stderr[-500:]
    assert done.returncode == (2 if "bad.yaml" in arguments else 0), done.stderr


def test_init_writes_configs_that_run(fmeco: Callable[..., Answer]) -> None:
    assert fmeco("init", "here", "--dataset", "sklearn/wine").code == 0
    assert fmeco("init", "here").code == 2, "never over an existing file"
    assert fmeco("pretrain", "here/pretrain.yaml", "--set", "train.epochs=1", "--out", "run").code == 0
    write("t.csv", "a,b,answer\n" + "\n".join(f"{i},{i * i},{'xy'[i % 2]}" for i in range(40)))
    assert fmeco("init", "table", "--dataset", "t.csv").code == 0
    assert fmeco("pretrain", "table/pretrain.yaml", "--set", "train.epochs=1", "--out", "table-run").code == 0


def test_torchvision_names_are_those_of_the_library() -> None:
    import torchvision

    listed = (ROOT / "fmeco" / "backbones" / "torchvision.txt").read_text().split()
    assert listed == torchvision.models.list_models(module=torchvision.models)


def test_timm_names_are_those_of_the_library_and_need_its_prefix(fmeco: Callable[..., Answer]) -> None:
    timm = pytest.importorskip("timm")
    assert (ROOT / "fmeco" / "backbones" / "timm.txt").read_text().split() == timm.list_models()
    assert choose("backbone", "resnet18").name == "torchvision"
    assert choose("backbone", "timm/resnet18").name == "timm"
    with pytest.raises(ConfigError, match="did you mean 'timm/vit_tiny_patch16_224'"):
        choose("backbone", "vit_tiny_patch16_224")
    assert len(fmeco("list", "backbones").out.splitlines()) < 40
    found = fmeco("list", "backbones", "vit_tiny_patch16_224").out
    assert "timm/vit_tiny_patch16_224" in found
    assert "torchvision" not in found
