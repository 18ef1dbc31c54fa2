"""A run's directory that was changed between its stop and its resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.config.load import load_config
from fmeco.config.resuming import is_sealed, sealed
from fmeco.errors import Stopped
from tests.conftest import Answer, photos, tiny
from tests.training.test_resume import After, assert_same

Fmeco = Callable[..., Answer]
GOLDEN = Path(__file__).parents[1] / "golden" / "format1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining and a finetuning run, each stopped in the middle, and each also trained to its end."""
    root = tmp_path_factory.mktemp("runs")
    task = {"dataset": tiny()["dataset"], "train": tiny()["train"]}
    api.pretrain(tiny(), out=root / "pretrained-whole")
    api.finetune(task, ref=root / "pretrained-whole", out=root / "finetuned-whole")
    with pytest.raises(Stopped):
        api.pretrain(tiny(), out=root / "pretrained", stop=After(5))
    with pytest.raises(Stopped):
        api.finetune(task, ref=root / "pretrained-whole", out=root / "finetuned", stop=After(5))
    return root


def copy(run: Path) -> Path:
    return Path(shutil.copytree(run, "run", symlinks=True))


def edit(run: Path, key: str, value: Any) -> Any:
    """Change a key or section of config.yaml by hand. Returns the old value."""
    file = run / "config.yaml"
    text = file.read_text("utf-8")
    config = yaml.safe_load(text)
    section, _, name = key.partition(".")
    place, last = (config[section], name) if name else (config, section)
    old, place[last] = place[last], value
    comments = [line for line in text.splitlines() if line.startswith("#")]
    file.write_text("\n".join([*comments, yaml.safe_dump(config, sort_keys=False)]), "utf-8")
    return old


# run, the key that the message names, its old value, and what is written: the key's new value, or a whole section
EDITS: list[tuple[str, str, str, Any]] = [
    ("pretrained", "optimizer.lr", "0.01", 0.5),
    ("pretrained", "optimizer.name", "adamw", {"optimizer": {"name": "sgd", "lr": 0.01}}),
    ("pretrained", "optimizer.weight_decay", "0.05", 0.0),
    ("pretrained", "schedule.warmup", "0.05", 0.2),
    ("pretrained", "seed", "0", 7),
    ("pretrained", "train.epochs", "3.0", 9.0),
    ("pretrained", "train.epochs", "3.0", 2.0),
    ("pretrained", "train.batch_size", "16", 8),
    ("pretrained", "train.early_stop", "null", 1),
    ("pretrained", "train.ema", "null", 0.9),
    ("pretrained", "evaluate.every", "1.0", 0.5),
    ("pretrained", "objective.label_smoothing", "0.0", 0.3),
    ("pretrained", "augment.name", "image/light", {"augment": "none"}),
    ("pretrained", "backbone.dropout", "0.0", 0.5),
    ("pretrained", "dataset.classes", "[0, 1, 2]", [0, 1, 3]),
    ("pretrained", "dataset.limit_seed", "0", 1),
    ("finetuned", "transfer.strategy", "auto", {"transfer": "probe"}),
    ("finetuned", "transfer.freeze", "[]", ["layers.0.*"]),
    ("finetuned", "from", "", "another"),
    ("finetuned", "seed", "0", 7),
]


@pytest.mark.situation("config.yaml edited in a key that resume must keep", "refused by name")
@pytest.mark.parametrize(("which", "key", "old", "new"), EDITS)
def test_an_edited_key_is_named_with_both_values(
    runs: Path, which: str, key: str, old: str, new: Any, fmeco: Fmeco
) -> None:
    run = copy(runs / which)
    for edited, value in new.items() if isinstance(new, dict) else [(key, new)]:
        edit(run, edited, value)
    answer = fmeco("resume", run)
    assert answer.code == 2, answer.err
    assert str(run / "config.yaml") in answer.err
    shown = {"optimizer.name": "sgd", "augment.name": "none", "transfer.strategy": "probe"}.get(key, new)
    assert f"{key}: {old}" in answer.err
    assert f" in the checkpoint, {shown} in config.yaml" in answer.err
    assert answer.err.count(" in the checkpoint, ") == 1, "nothing else was edited"


@pytest.mark.situation("config.yaml edited in a key that resume may change", "read rightly")
@pytest.mark.parametrize(
    ("key", "value"),
    [("train.log_every", 3), ("train.keep", 1), ("train.workers", 1), ("train.cache", "off"), ("train.save_every", 2)],
)
def test_where_and_how_data_is_read_may_be_edited(runs: Path, key: str, value: Any) -> None:
    run = copy(runs / "pretrained")
    edit(run, key, value)
    done = api.resume(run)
    assert done.metrics == api.load(runs / "pretrained-whole").checkpoint.meta["metrics"]
    assert yaml.safe_load((run / "config.yaml").read_text())[key.split(".")[0]][key.split(".")[1]] == value


@pytest.mark.situation("config.yaml formatted anew, with its comments removed", "read rightly")
@pytest.mark.parametrize("which", ["pretrained", "finetuned"])
def test_another_spelling_is_no_edit(runs: Path, which: str) -> None:
    run = copy(runs / which)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(json.dumps(config, indent=2))  # JSON is YAML
    api.resume(run)
    assert_same(runs / f"{which}-whole", run)


@pytest.mark.situation("config.yaml rewritten by fmeco itself", "read rightly")
def test_what_fmeco_wrote_is_no_edit(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    """A longer run, and one whose data moved, are killed before they save what they wrote."""
    run = copy(runs / "pretrained-whole")
    for keywords in ({"epochs": "+2"}, {"overrides": ["train.log_every=4"]}):
        with monkeypatch.context() as patch:
            patch.setattr("fmeco.training.loop.train", lambda session: (_ for _ in ()).throw(SystemExit(9)))
            with pytest.raises(SystemExit):
                api.resume(run, **keywords)  # type: ignore[arg-type]
    api.resume(run)
    assert checkpoint.open_checkpoint((run / "checkpoints/last").resolve()).meta["epoch"] == 5


@pytest.mark.situation("config.yaml of another run copied over that of a run", "refused by name")
def test_the_config_of_another_run_is_an_edit(runs: Path, fmeco: Fmeco) -> None:
    run = copy(runs / "pretrained")
    api.pretrain(tiny(seed=5, train={"epochs": 1}), out="other")
    shutil.copy("other/config.yaml", run / "config.yaml")
    answer = fmeco("resume", run)
    assert answer.code == 2
    assert "seed: 0 in the checkpoint, 5 in config.yaml" in answer.err


@pytest.mark.situation("config.yaml edited in a run without a checkpoint", "said")
def test_a_run_without_a_checkpoint_follows_its_edited_config(monkeypatch: pytest.MonkeyPatch, fmeco: Fmeco) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fmeco.training.loop.train", lambda session: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            api.pretrain(tiny(), out="run")
    edit(Path("run"), "seed", 3)
    answer = fmeco("resume", "run")
    assert answer.code == 0, answer.err
    assert "config.yaml was edited" in answer.err
    whole = api.pretrain(tiny(seed=3), out="whole")
    assert_same(whole.run, Path("run"))
    assert "was edited" not in fmeco("resume", "run").err, "it was written anew"


@pytest.mark.situation("config.yaml of an older fmeco, without a hash", "read rightly")
@pytest.mark.parametrize("name", ["adamw", "ema", "l2sp", "lora", "lp_ft", "multi_task", "muon"])
def test_an_older_run_was_not_edited(name: str, fmeco: Fmeco) -> None:
    shutil.copytree(GOLDEN / "stopped" / name, Path(), symlinks=True, dirs_exist_ok=True)
    data = [path.rename(f"moved{path.suffix}") for path in Path().glob("data*")]
    answer = fmeco("resume", "run", *(word for path in data for word in ("--set", f"dataset.path={path}")))
    assert answer.code == 0, answer.err


@pytest.mark.situation("config.yaml of an older fmeco, edited", "refused by name")
@pytest.mark.parametrize("name", ["adamw", "lora"])
def test_an_edit_of_an_older_run_is_named(name: str, fmeco: Fmeco) -> None:
    shutil.copytree(GOLDEN / "stopped" / name, Path(), symlinks=True, dirs_exist_ok=True)
    old = edit(Path("run"), "optimizer.lr", 0.9)
    answer = fmeco("resume", "run")
    assert answer.code == 2
    assert f"optimizer.lr: {old} in the checkpoint, 0.9 in config.yaml" in answer.err


# ---------------------------------------------------------------- longer after an early stop


def stopped_early(epochs: float = 40, **more: Any) -> tuple[Path, dict[str, Any]]:
    """A run that stops early: at this rate, it soon gets no better."""
    train = {"early_stop": 2, "epochs": epochs, **more}
    run = api.pretrain(tiny(train=train), out="run").run
    last = checkpoint.open_checkpoint((run / "checkpoints/last").resolve())
    state = last.trainer()["state"]
    assert state["finished"] and state["step"] < state["total"], "the settings of this test no longer stop it early"
    return run, {"epoch": last.meta["epoch"], **state}


def state_of(run: Path) -> dict[str, Any]:
    last = checkpoint.open_checkpoint((run / "checkpoints/last").resolve())
    return {"epoch": last.meta["epoch"], **last.trainer()["state"]}


@pytest.mark.situation("resume --epochs after an early stop", "read rightly")
@pytest.mark.parametrize("how", ["+2", "in all", "up to the configured length"])
def test_after_an_early_stop_patience_starts_anew(how: str) -> None:
    run, before = stopped_early()
    epochs = {
        "+2": "+2",
        "in all": str(before["epoch"] + 2),
        "up to the configured length": f"+{40 - before['epoch']:g}",
    }
    api.resume(run, epochs=epochs[how])
    after = state_of(run)
    assert after["epoch"] >= before["epoch"] + 2, "two evaluations without a better one end it at the earliest"
    if how != "up to the configured length":
        assert after["epoch"] == before["epoch"] + 2
        assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] == before["epoch"] + 2


@pytest.mark.situation("resume --epochs after an early stop", "refused by name")
def test_fewer_epochs_than_were_trained_are_refused(fmeco: Fmeco) -> None:
    run, before = stopped_early()
    answer = fmeco("resume", run, "--epochs", "1")
    assert answer.code == 2
    assert f"already has {before['epoch']:g} epochs" in answer.err
    assert fmeco("resume", run).code == 0, "without --epochs it stays finished"
    assert state_of(run)["step"] == before["step"]


@pytest.mark.situation("resume --epochs after an early stop", "read rightly")
def test_an_extension_after_an_early_stop_survives_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = stopped_early()
    with monkeypatch.context() as patch:
        patch.setattr("fmeco.training.loop.train", lambda session: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            api.resume(run, epochs="+2")
    api.resume(run)
    assert state_of(run)["epoch"] == before["epoch"] + 2


@pytest.mark.situation("resume --epochs after an early stop", "read rightly")
@pytest.mark.parametrize("change", [{"transfer": "lp_ft"}, {"schedule": {"name": "plateau", "patience": 1}}])
def test_after_an_early_stop_phases_and_schedules_go_on(change: dict[str, Any], runs: Path) -> None:
    task = {"dataset": tiny()["dataset"], "train": {**tiny()["train"], "epochs": 40, "early_stop": 2}, **change}
    run = api.finetune(task, ref=runs / "pretrained-whole", out="run").run
    before = state_of(run)
    assert before["finished"]
    assert before["step"] < before["total"]
    api.resume(run, epochs="+2")
    after = state_of(run)
    assert after["epoch"] == before["epoch"] + 2
    assert after["finished"]
    assert len(after["history"]) == len(before["history"]) + 2


# ---------------------------------------------------------------- what config.yaml holds


@pytest.mark.situation("a text in config.yaml that looks like something else", "read rightly")
@pytest.mark.parametrize(
    "text",
    [
        *("1e5", "1e-3", "1E5", "12e03", "1_0", "007", ".5", "+1", "0x1f", "0o17", "1:30", "2020-01-01", ".inf", "nan"),
        *(
            "on",
            "yes",
            "true",
            "null",
            "~",
            "",
            " lead",
            "a: b",
            "#x",
            "- x",
            "é",
            "\x85x",
            "x\u2028y",
            "a\nb",
            "\x1b[31m",
        ),
    ],
)
def test_a_text_stays_the_text_that_it_was(text: str) -> None:
    config = {"dataset": {"name": "csv_table", "path": "t.csv", "drop": [text], "target": text}, "backbone": "mlp"}
    loaded = load_config(config, stage="pretrain")
    Path("config.yaml").write_text(sealed(loaded.to_yaml()), "utf-8")
    again = load_config(Path("config.yaml"), stage="pretrain")
    assert again.to_dict() == loaded.to_dict()
    assert is_sealed(Path("config.yaml").read_text("utf-8"))


@pytest.mark.situation("a class whose name looks like a number", "read rightly")
def test_a_run_with_a_class_called_1e5_can_be_resumed() -> None:
    photos(Path("p"), ("blue", "red"), each=8)
    Path("p/blue").rename("p/1e5")
    config = {
        "dataset": {"name": "image_folder", "path": "p", "classes": ["1e5", "red"], "image_size": 8},
        "backbone": {"name": "mlp", "hidden": [8]},
        "train": {"epochs": 1, "tensorboard": False},
    }
    api.pretrain(config, out="run")
    assert api.resume("run", epochs="+1").metrics
    assert api.load("run").spec.targets["label"].classes == ("1e5", "red")


@pytest.mark.situation("config.yaml of a run edited in how its data is split", "refused by name")
@pytest.mark.parametrize(("key", "value"), [("val_fraction", 0.4), ("classes", [0, 1, 3]), ("name", "wine")])
@pytest.mark.parametrize("command", ["evaluate", "embed"])
def test_other_splits_than_in_training_are_refused(
    key: str, value: Any, command: str, runs: Path, fmeco: Fmeco
) -> None:
    run = copy(runs / "pretrained-whole")
    edit(run, "dataset" if key == "name" else f"dataset.{key}", value)
    more = ["--output", "out.npz"] if command == "embed" else []
    answer = fmeco(command, run, *more)
    assert answer.code == 2
    assert f"dataset.{key}: " in answer.err
    assert "in the checkpoint, " in answer.err
    edit(run, "optimizer.lr", 7.0)  # not about data
    edit(run, "dataset", tiny()["dataset"])
    assert fmeco(command, run, *more).code == 0
    if key == "val_fraction":
        assert (
            fmeco(command, run, *more, "--force" if more else "--json", "--set", "dataset.val_fraction=0.4").code == 0
        )


@pytest.mark.situation("moved data, named in a run's config.yaml", "read rightly")
def test_evaluate_finds_moved_data_by_the_config_of_the_run(fmeco: Fmeco) -> None:
    photos(Path("p"), each=8)
    config = {**tiny(), "dataset": {"name": "image_folder", "path": "p", "image_size": 8}}
    run = api.pretrain(config, out="run").run
    wanted = fmeco("evaluate", run, "--json").json["metrics"]
    Path("p").rename("moved")
    edit(run, "dataset.path", "moved")
    assert fmeco("evaluate", run, "--json").json["metrics"] == wanted


@pytest.mark.situation("a run's config.yaml that is no config", "refused by name")
@pytest.mark.parametrize("content", [b"[]", b"5", b"\xff\xfe", b"a: [", b"a: 1\na: 2", b"&x y"])
@pytest.mark.parametrize("command", ["evaluate", "resume", "embed"])
def test_a_broken_config_of_a_run_is_named(content: bytes, command: str, runs: Path, fmeco: Fmeco) -> None:
    run = copy(runs / "pretrained-whole")
    (run / "config.yaml").write_bytes(content)
    answer = fmeco(command, run, *(["--output", "out.npz"] if command == "embed" else []))
    assert answer.code == 2, answer.err
    assert "config.yaml" in answer.err
