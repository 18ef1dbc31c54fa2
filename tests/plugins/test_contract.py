"""Every plug-in keeps its kind's promises."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fmeco.assembly.data import described
from fmeco.assembly.optimizer import build_optimizer
from fmeco.checkpoints import transplant
from fmeco.config.check import choose
from fmeco.core import (
    Augment,
    Batch,
    ConfigError,
    Data,
    DataSpec,
    Groups,
    InputSpec,
    Target,
    Teacher,
    mix,
    parameter_groups,
)
from fmeco.data.loader import Loader
from fmeco.data.reading import choose_reading
from fmeco.plugins.registry import INJECTED, plugins
from tests.conftest import photos, script, texts, tones, write

sweep = script("sweep")

IMAGE = DataSpec("image", {"image": InputSpec((3, 32, 32), "uint8", 1 / 255, (0.5,) * 3, (0.25,) * 3)})
TARGETS = {
    "classification": Target("class", ("a", "b", "c"), (2, 1, 1)),
    "multilabel": Target("multilabel", ("a", "b", "c"), (2, 2, 2)),
    "regression": Target("number", mean=3.0, std=2.0),
    "forecast": Target("series", steps=3),
    "ctc": Target("text", ("a", "b", "c")),
}
VALUES: dict[str, Any] = {
    "classification": torch.tensor([0, 1, 2, 0]),
    "multilabel": torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]]),
    "regression": torch.tensor([1.0, 2.0, 5.0, 4.0]),
    "forecast": torch.arange(12.0).view(4, 3),
    "ctc": [torch.tensor([c]) for c in (0, 1, 2, 0)],  # one character each: some maps have a single step of time
}
TASKS = {"kind": "classification", "traits": "multilabel", "size": "regression"}  # of the objective multi_task
# Small architectures; scripts/sweep.py walks all of the library in the same way, also those of over 30M parameters.
FAMILIES = [
    "resnet18",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_x_400mf",
    "densenet121",
    "googlenet",
    "inception_v3",
    "convnext_tiny",
    "swin_t",
    "timm/resnet18",
    "timm/vit_tiny_patch16_224",
    "timm/mobilenetv3_small_050",
    "timm/convnext_atto",
]
SIZES = {**sweep.SIZES, "timm/vit_tiny_patch16_224": 64}


PAIRS = ("simclr", "vicreg", "simsiam", "supcon", "barlow_twins", "byol", "dino")  # objectives that compare two views


def backbone(name: str, spec: DataSpec, **options: Any) -> Any:
    choice = choose("backbone", {"name": name, **options})
    return choice.plugin.build({"spec": spec, "arch": choice.arch}, choice.options)


def test_every_kind_has_plugins() -> None:
    expected = {
        "datasets": {
            "digits",
            "image_folder",
            "csv_images",
            "torchvision",
            "csv_table",
            "sklearn",
            "fake_images",
            "audio",
            "text",
            "events",
            "series",
        },
        "backbones": {"torchvision", "timm", "mlp", "transformer"},
        "objectives": {
            "classification",
            "multilabel",
            "regression",
            "forecast",
            "ctc",
            "distill",
            "mask",
            "next",
            *PAIRS,
        },
        "augment": {"none", "image", "spectrogram", "corrupt"},
        "optimizers": {
            *{"sgd", "adam", "adamw", "muon", "nadam", "radam"},
            *{"adamax", "rmsprop", "adagrad", "adadelta", "adafactor"},
        },
        "schedules": {"cosine", "linear", "step", "one_cycle", "constant", "plateau"},
        "strategies": {"full", "scratch", "probe", "lp_ft", "gradual", "llrd", "bn", "bias", "lora", "l2sp"},
    }
    assert set(expected) == set(INJECTED)
    for kind, names in expected.items():
        found = plugins(kind)
        assert names <= set(found), kind
        assert all(plugin.help for plugin in found.values()), "every plug-in says what it is"


def read_data(raw: dict[str, Any]) -> Data:
    choice = choose("dataset", raw)
    data: Data = choice.plugin.build({"known": None, "whole": False, "arch": choice.arch}, choice.options)
    return data


def answers(i: int) -> dict[str, str]:
    """Columns of a target of each kind, for row i."""
    return {"kind": "ab"[i % 2], "size": f"{i / 3:.2f}", "traits": ("x", "y", "x|y")[i % 3], "said": "hi"[i % 2]}


def table(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    lines = [",".join(map(str, row)) for row in ([*rows[0]], *(row.values() for row in rows))]
    return str(write(path, "\n".join(lines) + "\n"))


def make_files(name: str, folder: Path) -> dict[str, Any]:
    """Write what a dataset reads into an empty folder. Returns its section of a config."""
    if name in ("digits", "fake_images"):
        return {"image_size": 16}
    if name in ("image_folder", "images"):
        return {"path": str(photos(folder / "photos")), "image_size": 16}
    if name == "audio":
        pytest.importorskip("soundfile")
        return {"path": str(tones(folder / "tones")), "sample_rate": 8000, "seconds": 0.2, "mels": 16}
    if name == "csv_images":
        photos(folder, ("blue", "red"), each=10)
        found = [(i, c) for c in ("blue", "red") for i in range(10)]
        rows = [{"path": f"{c}/{i:02}.png", "label": c, **answers(i)} for i, c in found]
        return {"path": table(folder / "t.csv", rows), "image_size": 16}
    if name == "masks":
        photos(folder / "images", ("blue", "red"), each=10)
        for path in sorted((folder / "images").rglob("*.png")):
            mask = folder / "masks" / path.relative_to(folder / "images")
            mask.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                Image.new("L", image.size, int(path.parent.name == "red")).save(mask)
        return {"path": str(folder), "image_size": 16}
    if name == "boxes":
        photos(folder, ("blue", "red"), each=10)
        found = [(i, c) for c in ("blue", "red") for i in range(10)]
        rows = [
            {"path": f"{c}/{i:02}.png", "xmin": i, "ymin": 3, "xmax": i + 12, "ymax": 20, "label": c} for i, c in found
        ]
        return {"path": table(folder / "t.csv", rows), "image_size": 16}
    if name == "csv_table":
        rows = [{"n": i, "c": "xyz"[i % 3], "m": i * 0.5 if i % 7 else "", "label": "ab"[i % 2]} for i in range(40)]
        return {"path": table(folder / "t.csv", rows)}
    if name == "events":
        rows = [{"user": f"u{i % 6}", "item": f"i{i % 7}", "time": i} for i in range(60)]
        return {"path": table(folder / "e.csv", rows), "length": 6}
    if name == "series":
        rows = [{"time": i, "a": i * i % 13, "b": i % 7} for i in range(80)]
        return {"path": table(folder / "s.csv", rows), "context": 8, "horizon": 3}
    if name in ("text", "stdlib_docs"):
        pytest.importorskip("tokenizers")
    if name == "text":
        return {"path": str(texts(folder / "t.jsonl")), "vocabulary": 300, "length": 12}
    if name == "stdlib_docs":
        return {"classes": ["json", "logging"], "vocabulary": 300, "length": 12}
    return {}


def with_answers(name: str, folder: Path) -> dict[str, Any]:
    """As `make_files`, of a table that has a column of each of `answers`."""
    if name == "text":
        rows = [{"text": f"{('cat', 'dog', 'saw', 'axe')[i % 4]} {i}", **answers(i)} for i in range(40)]
        return {"path": table(folder / "t.csv", rows), "vocabulary": 300, "length": 12}
    if name == "csv_table":
        rows = [{"n": i, "c": "xyz"[i % 3], "m": i % 5, **answers(i)} for i in range(40)]
        return {"path": table(folder / "t.csv", rows), "features": ["n", "c", "m"]}
    raw = make_files(name, folder)
    if name == "audio":
        found = sorted(path.relative_to(folder) for path in folder.rglob("*.wav"))
        raw["path"] = table(folder / "t.csv", [{"path": path, **answers(i)} for i, path in enumerate(found)])
    return raw


Sections = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def section(tmp_path_factory: pytest.TempPathFactory) -> Sections:
    """The section of a config that reads a dataset. Its files are written once: no test may change them."""

    @functools.cache
    def written(name: str, make: Callable[[str, Path], dict[str, Any]]) -> dict[str, Any]:
        return make(name, tmp_path_factory.mktemp(name))

    def of(name: str, arch: str | None = None, make: Any = make_files, **options: Any) -> dict[str, Any]:
        return {**written(name, make), **options, "name": f"{name}/{arch}" if arch else name}

    return of


@pytest.fixture(scope="session")
def data_of(section: Sections) -> Callable[..., Data]:
    """Data that is read once: no test may change its samples."""
    read: dict[str, Data] = {}

    def of(*args: Any, **options: Any) -> Data:
        raw = section(*args, **options)
        key = json.dumps(raw)
        read[key] = read[key] if key in read else read_data(raw)
        return read[key]

    return of


DATASETS = [
    (name, arch)
    for name, plugin in plugins("datasets").items()
    if name != "torchvision"
    for arch in plugin.names or (None,)
]


@pytest.mark.parametrize(("name", "arch"), DATASETS)
def test_dataset(name: str, arch: str | None, section: Sections, data_of: Callable[..., Data]) -> None:
    data, again = data_of(name, arch), read_data(section(name, arch))
    assert data.spec == again.spec, "the same data has the same description and fingerprint"
    assert data.spec == DataSpec.from_json(data.spec.to_json()), "the description survives JSON"
    names: list[str] = []
    for part in ("train", "val"):
        samples = data.split(part)
        assert len(samples) == data.spec.sizes[part]
        names += [samples.name(i) for i in range(len(samples))]
        for target in data.spec.targets:
            assert len(samples.targets[target]) == len(samples)
        first = samples[0]
        assert set(first) == set(data.spec.inputs)
        for key, one in data.spec.inputs.items():
            assert str(first[key].dtype) == f"torch.{one.dtype}"
            assert torch.equal(first[key], data.split(part)[0][key]), "reading has no memory"
    assert len(set(names)) == len(names), "no sample is in two splits"


def batch(spec: DataSpec, values: torch.Tensor, count: int = 4) -> Batch:
    inputs = {}
    for name, one in spec.inputs.items():
        generator = torch.Generator().manual_seed(1)
        shape = (count, *one.shape)
        inputs[name] = (
            torch.randn(shape, generator=generator) if one.dtype != "int64" else torch.ones(shape, dtype=torch.int64)
        )
    return Batch([inputs], {"label": values}, torch.arange(count), mix(0, torch.arange(count)).unsqueeze(0))


# One-channel images take the same path in every family.
@pytest.mark.parametrize(
    ("arch", "channels"), [*((arch, 3) for arch in FAMILIES), ("mlp", 3), ("mlp", 1), ("resnet18", 1), ("vit_b_32", 1)]
)
def test_backbone(arch: str, channels: int) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    sweep.keeps_the_contract(arch, channels, SIZES.get(arch, 32))


ON_IMAGES = ("segmentation", "detection")  # objectives whose answers lie on images; they have tests of their own
LABELLED = [
    name for name in plugins("objectives") if name not in ("mask", "next", "distill", "forecast", *ON_IMAGES, *PAIRS)
]
KINDS = ["digits", "audio", "text", "events", "csv_table", "series"]  # a dataset of each modality
SAID = "audio transcripts"
# Data by the targets that it has: the dataset, and further options where it is a table with a column of each kind.
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "image numbers": ("csv_images", {"label_column": "size"}),
    "image labels": ("csv_images", {"label_column": "traits", "task": "multilabel"}),
    "image tasks": ("csv_images", {"label_column": ["kind", "size"]}),
    SAID: ("audio", {"label_column": "said", "task": "text", "seconds": 0.5}),
    "audio numbers": ("audio", {"label_column": "size"}),
    "audio labels": ("audio", {"label_column": "traits", "task": "multilabel"}),
    "text without labels": ("text", {"label": None}),
    "text numbers": ("text", {"label": "size", "task": "number"}),
    "text labels": ("text", {"label": "traits", "task": "multilabel"}),
    "table numbers": ("csv_table", {"target": "size"}),
    "table tasks": ("csv_table", {"target": ["kind", "size"]}),
}
LIKE = {"csv_images": "digits"}  # datasets of one modality
BODIES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [16]},
    "cnn": {"widths": [8, 8]},
    "resnet18": {},
    "transformer": {"width": 32, "depth": 2},
}
# A big body meets each modality; which targets there are makes no difference to it, but that transcripts ask for its map.
MET = [(source, body) for source in SOURCES for body in BODIES if body != "resnet18" or source in (*KINDS, SAID)]
PATCHES: dict[str, Any] = {"digits": [4, 2], "audio": [4, 10], "series": 4}


def fits(kind: str, body: str, objective: str) -> bool:
    """What is promised to work together; everything else is promised to be refused."""
    reads = {"mlp": {"digits", "audio", "csv_table", "series"}, "transformer": set(KINDS)}.get(
        body, {"digits", "audio"}
    )
    needs = {"mask": body == "transformer", "next": body == "transformer" and kind in ("text", "events")}
    needs["forecast"] = kind == "series"
    needs["ctc"] = body != "mlp" and kind not in ("csv_table", "series")
    return kind in reads and needs.get(objective, True)


def serves(objective: str, targets: Mapping[str, Target]) -> bool:
    """Whether an objective is promised to learn from such targets."""
    kinds = {target.kind for target in targets.values()}
    if objective == "multi_task":
        return bool(kinds) and kinds <= {"class", "multilabel", "number"}
    if objective in ON_IMAGES:
        return bool(kinds & {*plugins("objectives")[objective].default_for})
    if objective == "supcon":
        return "class" in kinds
    if objective == "forecast":
        return "future" in targets and targets["future"].kind == "series"
    return objective not in LABELLED or ("label" in targets and targets["label"].kind == TARGETS[objective].kind)


def tries(kind: str, body: str, objective: str, data: Data, values: dict[str, Any] | None = None) -> None:
    """Take two steps and measure once; or be refused in one line. values: those of its targets, in place of the data's."""
    torch.manual_seed(0)
    spec, options = data.spec, dict(BODIES[body])
    if body == "transformer" and kind in PATCHES:
        options["patch"] = PATCHES[kind]
    if body == "transformer" and kind in ("text", "events") and objective == "next":
        options["causal"] = True
    raw: dict[str, Any] = {"name": objective}
    if objective == "multi_task":
        suited = {target.kind: name for name, target in TARGETS.items()}
        raw["tasks"] = {name: suited[target.kind] for name, target in spec.targets.items()} or {"label": "regression"}
    if objective == "dino":
        raw["local"] = 0  # smaller views are another promise

    def build() -> Any:
        body_of = functools.partial(backbone, body, spec, **options)
        made = body_of()
        if objective == "distill":
            raw.update(teacher="a twin", width=made.width)
        choice = choose("objective", raw)
        twin = lambda ref: Teacher(ref, body_of().eval().requires_grad_(False), None, spec, None)  # noqa: E731
        return choice.plugin.build({"backbone": made, "spec": spec}, choice.options, twin)

    if not fits(kind, body, objective) or not serves(objective, spec.targets):
        with pytest.raises(ConfigError) as refused:
            build()
        assert "\n" not in refused.value.message
        if fits(kind, body, objective):
            assert any(word in refused.value.message for word in ("target", "classes", "vectors")), (
                "it says what it needs"
            )
        return
    made = build()
    samples = data.split("train")
    reading = choose_reading(0, data, samples, torch.device("cpu"))
    loader = Loader(data, samples, made.views, Augment(), 4, 4, 0, reading, torch.device("cpu"))
    one = next(loader.batches(0, 1))
    if values is not None:
        one.target = {name: given[: len(one)] for name, given in values.items()}
    for _ in range(2):  # a head starts at zero: the backbone's first gradient is, too
        made.zero_grad()
        loss = made(one, "loss")
        loss.sum.backward()
        assert torch.isfinite(loss.sum)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters() if p.requires_grad)
        build_optimizer(choose("optimizer", {"name": "sgd", "lr": 0.01}), groups(made)).step()
    made.eval()
    with torch.inference_mode():
        rows = made(one, "rows")
        metrics = made.metrics(rows)
    assert all(len(values) == len(one) for values in rows.values())
    assert next(iter(made.directions)) in metrics
    depths = {made.backbone.depth_of(name) for name, _ in made.backbone.library.named_parameters()}
    assert min(depths) == 0 and len(depths) > 1


@pytest.mark.parametrize("objective", list(plugins("objectives")))
@pytest.mark.parametrize(("source", "body"), MET)
def test_every_combination_works_or_says_why_not(
    source: str, body: str, objective: str, data_of: Callable[..., Data]
) -> None:
    """With the targets that the dataset itself has."""
    name, options = SOURCES[source]
    data = described(data_of(name, None, with_answers if options else make_files, **options))
    tries(LIKE.get(name, name), body, objective, data)


@pytest.mark.parametrize("objective", LABELLED)
@pytest.mark.parametrize("body", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("kind", KINDS)
def test_objectives_learn_targets_that_other_datasets_may_have(
    kind: str, body: str, objective: str, data_of: Callable[..., Data]
) -> None:
    data = data_of(kind)
    tasks = TASKS if objective == "multi_task" else {"label": objective}
    stand_ins = {name: TARGETS[task] for name, task in tasks.items()}
    data = dataclasses.replace(data, spec=dataclasses.replace(data.spec, targets=stand_ins))
    tries(kind, body, objective, data, {name: VALUES[task] for name, task in tasks.items()})


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("body", ["mlp", "cnn", "resnet18", "transformer"])
def test_objective(name: str, body: str) -> None:
    if (name, body) == ("ctc", "mlp"):
        pytest.skip("it keeps no time")
    kinds = TASKS if name == "multi_task" else {"label": name}
    targets = {target: TARGETS[kind] for target, kind in kinds.items()}
    spec = DataSpec("image", IMAGE.inputs, targets=targets, sizes={"train": 4})
    made_from = backbone(body, spec, **BODIES[body], **({"patch": 16} if body == "transformer" else {}))
    choice = choose("objective", {"name": name, **({"tasks": TASKS} if name == "multi_task" else {})})
    made = choice.plugin.build({"backbone": made_from, "spec": spec}, choice.options)
    one = batch(spec, torch.zeros(4))
    one.target = {target: VALUES[kind] for target, kind in kinds.items()}
    # The head starts at zero, so the backbone's first gradient is zero; one step of the head wakes it.
    for _ in range(2):
        made.zero_grad()
        loss = made(one, "loss")
        assert torch.isfinite(loss.sum)
        loss.sum.backward()
        build_optimizer(choose("optimizer", {"name": "sgd", "lr": 0.1}), groups(made)).step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in made.parameters()) > 0.9 * len(list(made.parameters()))
    made.eval()
    with torch.inference_mode():
        rows = made(one, "rows")
        metrics = made.metrics(rows)
        assert set(made.directions) >= {metric for metric in metrics if "/" not in metric}
        assert next(iter(made.directions)) in metrics
        assert all(len(values) == 4 for values in rows.values())
        decoded = made.decode(made(one, "predict"))
    assert len(decoded) == 4
    assert all("prediction" in row for row in decoded)
    product, rest = transplant.split_state(made)
    assert len(product) + len(rest) == len(made.state_dict()), "every tensor is in one of the two files"
    for tensor, classes in made.class_rows().items():
        assert len(dict(made.named_parameters())[tensor]) == len(classes)


VARIED = {
    "image": "image_folder",
    "spectrogram": "audio",
    "corrupt": "csv_table",
    "none": "image_folder",
}  # augmentation -> data for it
AUGMENTS = [(name, plugin.name) for plugin in plugins("augment").values() for name in plugin.names or (plugin.name,)]


@pytest.mark.parametrize(("name", "plugin"), AUGMENTS)
def test_augment_depends_on_its_keys_alone(name: str, plugin: str, data_of: Callable[..., Data]) -> None:
    data = data_of(VARIED[plugin])
    kind, one = next(iter(data.spec.inputs.items()))
    choice = choose("augment", {"name": name, **({"erase": 0.5, "color": 0.5} if plugin == "image" else {})})
    samples = data.split("train")
    augment = choice.plugin.build({"spec": data.spec, "arch": choice.arch, "train": samples}, choice.options)

    def views(seed: int, workers: Any) -> list[torch.Tensor]:
        from fmeco.core import View

        reading = choose_reading(workers, data, samples, torch.device("cpu"))
        loader = Loader(data, samples, (View(), View(augment=False)), augment, 8, 3, seed, reading, torch.device("cpu"))
        torch.manual_seed(workers)  # must not matter
        return [x for one in loader.batches(0, 6) for x in (one.views[0][kind], one.views[1][kind])]

    first, same, other = views(0, 0), views(0, 2), views(1, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert all(x.shape[1:] == one.shape and x.dtype == torch.float32 for x in first)
    assert any(not torch.equal(a, b) for a, b in zip(first[::2], other[::2], strict=True))
    if name != "none":
        assert any(not torch.equal(a, b) for a, b in zip(first[::2], first[1::2], strict=True)), "it varies something"


def groups(module: torch.nn.Module) -> Groups:
    """Every parameter that learns at the full rate; all but the first one inside the network."""
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return parameter_groups(learning.items(), dict.fromkeys(learning, 1.0), {"weight"})


@pytest.mark.parametrize("name", list(plugins("optimizers")))
def test_optimizer(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    choice = choose("optimizer", {"name": name, "weight_decay": 0.01})
    optimizer = build_optimizer(choice, groups(model))
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.01], "biases are not decayed"
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "decay", "expected"),
    [
        ("adamw", 0.1, [["norm"], ["low"], ["high", "head"]]),
        ("adamw", 0.0, [["norm", "high", "head"], ["low"]]),
        ("muon", 0.1, [["low"], ["high"], ["norm"], ["head"]]),
        ("muon", 0.0, [["low"], ["high"], ["norm", "head"]]),
    ],
)
def test_moments_stay_at_the_places_that_checkpoints_have_them_at(
    name: str, decay: float, expected: list[list[str]]
) -> None:
    shapes = {"norm": (4,), "low": (4, 4), "high": (4, 4), "head": (2, 4)}
    named = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    parts = parameter_groups(named.items(), {**dict.fromkeys(named, 1.0), "low": 0.5}, {"low", "high"})
    optimizer = build_optimizer(choose("optimizer", {"name": name, "lr": 0.1, "weight_decay": decay}), parts)
    assert [group["names"] for group in optimizer.param_groups] == expected
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.05 if "low" in g else 0.1 for g in expected]


@pytest.mark.parametrize("name", list(plugins("schedules")))
def test_schedule(name: str) -> None:
    choice = choose("schedule", {"name": name, "warmup": 0.1})
    schedule = choice.plugin.bound(choice.options)
    values = [schedule(step=step, total=100, history=[]) for step in range(100)]
    assert all(0 <= value <= 1 + 1e-9 for value in values)
    assert max(values) == pytest.approx(1, abs=0.02)
    assert values[0] < 0.15 < max(values), "warm-up starts low"
    if name == "plateau":
        assert schedule(step=50, total=100, history=[0.5, 0.4, 0.4, 0.4]) == pytest.approx(0.1)
    if name in ("cosine", "linear", "one_cycle"):
        assert values[-1] < 0.05
