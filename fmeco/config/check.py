"""YAML (and --set) -> one frozen, complete RunConfig. Strict: every mistake is reported, all at once, before torch is
imported, each with its file, line, key and the nearest valid name.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fmeco.data import parquet
from fmeco.errors import ConfigError, FmecoError, clean, nearest
from fmeco.plugins.registry import Doc, Ge, Gt, Le, Lt, Plugin, find, plugins

PLUGIN_SECTIONS = {
    "dataset": "datasets",
    "backbone": "backbones",
    "objective": "objectives",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "augment": "augment",
    "transfer": "strategies",
}
# A section that gives keys alone means this plug-in.
DEFAULT_NAMES = {"optimizer": "adamw", "schedule": "cosine", "transfer": "full"}
FINETUNE_LR = 5e-4  # adamw's, when a finetuning config says nothing: it starts near a solution
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Train(BaseModel):
    """How long and how a run trains."""

    model_config = STRICT
    epochs: Annotated[
        float | None,
        Doc("passes over the training data; null = steps, budget, or the stage's default"),
        Gt(0),
    ] = None
    steps: Annotated[int | None, Doc("optimizer steps, instead of epochs"), Gt(0)] = None
    budget: Annotated[str | None, Doc("a time such as 90s, 10m or 2h: train as many steps as fit")] = None
    batch_size: Annotated[
        int | Literal["auto", "full"],
        Doc(
            "samples per optimizer step, over all ranks and micro-batches; full = gradient descent; "
            "auto = 64, or fewer (down to 16) where an epoch would have less than five steps"
        ),
    ] = "auto"
    lr_for_batch: Annotated[
        int | None,
        Doc(
            "the batch size that optimizer.lr is meant for: a run takes the rate times batch_size / lr_for_batch "
            "(https://arxiv.org/abs/1706.02677 section 2.1); null = the rate as it is"
        ),
        Gt(0),
    ] = None
    micro_batch: Annotated[int | Literal["auto"], Doc("samples per forward pass; auto = batch_size, at most 256")] = (
        "auto"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Doc(
            "of the forward and backward pass; weights stay fp32. auto = bf16 on a GPU that has it; on a CPU, for runs of "
            "two minutes and more, whichever is faster by a short measurement"
        ),
    ] = "auto"
    channels_last: Annotated[bool | Literal["auto"], Doc("memory format of image models")] = "auto"
    compile: Annotated[bool, Doc("torch.compile the backbone")] = False
    sync_batch_norm: Annotated[bool, Doc("batch norm over the samples of all ranks; needs GPUs")] = False
    workers: Annotated[
        int | Literal["auto"],
        Doc(
            "loader processes; 0 = threads, between steps; auto = 0 on a CPU and for data that fits on the device, "
            "else as many as a measurement says"
        ),
    ] = "auto"
    cache: Annotated[
        str,
        Doc(
            "disk space for decoded samples, such as 20GB, so that later epochs and runs decode nothing; off; "
            "auto = half of the free memory, at most a quarter of the free disk"
        ),
    ] = "auto"
    clip_norm: Annotated[float | None, Doc("largest gradient norm; null = no clipping"), Gt(0)] = None
    ema: Annotated[
        float | None,
        Doc("decay of an exponential moving average of the weights, which is then evaluated and saved"),
        Gt(0),
        Lt(1),
    ] = None
    early_stop: Annotated[int | None, Doc("stop after this many evaluations without a better metric"), Gt(0)] = None
    sampler: Annotated[Literal["shuffle", "balanced"], Doc("balanced = every class equally often")] = "shuffle"
    label_fraction: Annotated[
        float,
        Doc(
            "share of each class of the training samples to train on, drawn by name and seed; more keeps what less drew"
        ),
        Gt(0),
        Le(1),
    ] = 1.0
    save_every: Annotated[
        int | Literal["auto"], Doc("steps between checkpoints; auto = at evaluations, 20 seconds apart or more")
    ] = "auto"
    keep: Annotated[int, Doc("newest checkpoints to keep beside the best"), Ge(1)] = 2
    log_every: Annotated[int, Doc("steps between lines of metrics.jsonl"), Ge(1)] = 10
    on_nonfinite: Annotated[
        Literal["stop", "skip"],
        Doc("when the loss or gradient is not finite: stop the run, or skip the step (20 in a row stop it)"),
    ] = "stop"
    on_bad_sample: Annotated[Literal["error", "skip"], Doc("when a sample cannot be read")] = "error"
    tensorboard: Annotated[bool | Literal["auto"], Doc("write TensorBoard events; auto = if it is installed")] = "auto"

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        given = [key for key in ("epochs", "steps", "budget") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of epochs, steps and budget, not {' and '.join(given)}")
        if self.budget is not None:
            seconds(self.budget)
        if self.cache not in ("auto", "off"):
            size(self.cache)
        for key in ("batch_size", "micro_batch", "workers", "save_every"):
            value = getattr(self, key)
            if isinstance(value, int) and value < (key != "workers"):
                raise ValueError(f"{key} must be positive, not {value}")
        return self


class Evaluate(BaseModel):
    """When a run evaluates on the validation split, and which metric is its best."""

    model_config = STRICT
    every: Annotated[float, Doc("epochs between evaluations; the last step always is one"), Gt(0)] = 1
    best: Annotated[str | None, Doc("metric that picks the best checkpoint; null = the objective's first")] = None
    probes: Annotated[
        list[Literal["knn", "linear"]] | None,
        Doc(
            "how well the backbone's vectors tell classes: by the nearest others, by a linear head; the first picks the best "
            "checkpoint. Without classes: whether a view finds its other view. null = the objective's, [] = none"
        ),
    ] = None
    batch_size: Annotated[int | None, Doc("null = twice the micro-batch"), Gt(0)] = None
    health: Annotated[
        Literal["stop", "warn", "off"], Doc("what to do when an evaluation shows that the representation has collapsed")
    ] = "stop"


class Carry(BaseModel):
    """Keys of `transfer:` that every strategy has."""

    model_config = STRICT
    head: Annotated[
        Literal["auto", "fresh"], Doc("auto = rows of classes that both tasks have are carried over by name")
    ] = "auto"
    allow_partial: Annotated[bool, Doc("load what fits of the source, and leave the rest as initialised")] = False
    prefix: Annotated[
        str | None,
        Doc(
            "what the names of the backbone's tensors begin with in the source, such as student.backbone.; null finds it"
        ),
    ] = None
    freeze: Annotated[
        list[str], Doc("names or patterns of parameters that do not train, such as [conv1, 'layer1.*']")
    ] = []
    cross_modality: Annotated[
        bool,
        Doc("start from weights that were made with data of another modality, such as images for audio; else refused"),
    ] = False
    batch_norm: Annotated[
        Literal["frozen", "adapt"],
        Doc("frozen batch norms keep their running statistics and use them, or adapt them to the new data"),
    ] = "frozen"
    views: Annotated[
        int | None,
        Doc(
            "augmented views of each sample to compute once, while the backbone is frozen, and train on in every epoch; "
            "0 = compute features anew in every epoch; null = 3, or the plain samples where augment is none"
        ),
        Ge(0),
    ] = None


SECTIONS: dict[str, type[BaseModel]] = {"train": Train, "evaluate": Evaluate}


@dataclass(frozen=True)
class Choice:
    """A plug-in section: which plug-in, its library's architecture if it has several, and every key's value."""

    kind: str
    name: str
    arch: str | None
    options: Mapping[str, Any] = field(hash=False)

    @property
    def spelled(self) -> str:
        return self.name if self.arch is None else f"{self.name}/{self.arch}"

    @property
    def plugin(self) -> Plugin:
        return plugins(self.kind)[self.name]

    def to_dict(self) -> dict[str, Any]:
        return {"strategy" if self.kind == "strategies" else "name": self.spelled, **self.options}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. A section that is None is chosen from the data or the checkpoint."""

    stage: Literal["pretrain", "finetune"]
    source: str | None  # the REF of --from
    dataset: Choice | None
    backbone: Choice | None
    objective: Choice | None
    augment: Choice | None
    optimizer: Choice
    schedule: Choice
    transfer: Choice | None
    carry: Carry
    train: Train
    evaluate: Evaluate
    seed: int
    name: str  # for the run directory: the config's stem or the dataset's name

    def to_dict(self, paths: Literal["given", "absolute", "relative"] = "given") -> dict[str, Any]:
        """The config as nested dicts. Absolute paths do not depend on the current folder; relative ones can travel."""

        def place(path: str) -> str:
            if paths == "relative":
                return os.path.relpath(path) if os.path.isabs(path) else path
            return os.path.abspath(path) if paths == "absolute" and os.path.exists(path) else path

        def folder(name: str) -> str:
            """SOURCE/./FOLDER or SOURCE/./FOLDER@WEIGHTS; a folder is told from other names by how it begins."""
            source, _, rest = name.partition("/")
            plugin = plugins("backbones").get(source)
            if plugin is None or not plugin.open or not rest.startswith((".", "/")):
                return name
            path, at, weights = rest.partition("@")
            path = place(path)
            return f"{source}/{'' if path.startswith(('.', '/')) else './'}{path}{at}{weights}"

        out: dict[str, Any] = {"stage": self.stage}
        if self.source is not None:
            out["from"] = place(folder(self.source))
        for section in PLUGIN_SECTIONS:
            choice: Choice | None = getattr(self, section)
            if choice is not None:
                out[section] = choice.to_dict()
                if choice.plugin.open:
                    out[section]["name"] = folder(choice.spelled)
                for key in choice.plugin.paths:
                    if isinstance(choice.options[key], str):
                        out[section][key] = place(choice.options[key])
        if self.transfer is not None:
            out["transfer"] |= self.carry.model_dump()
        return out | {
            "train": self.train.model_dump(),
            "evaluate": self.evaluate.model_dump(),
            "seed": self.seed,
        }

    def to_yaml(self) -> str:
        """The config as the run's own file, with absolute paths."""
        text: str = yaml.safe_dump(self.to_dict("absolute"), sort_keys=False, allow_unicode=True, width=100)
        return text

    def replace(self, **changes: Any) -> RunConfig:
        return dataclasses.replace(self, **changes)


def load(
    source: Path | Mapping[str, Any] | None,
    *,
    stage: Literal["pretrain", "finetune"] | None = None,
    overrides: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> RunConfig:
    """Read and check a config.

    source: a YAML file, a mapping (the Python API), or None (all defaults). overrides: `a.b=c` strings of --set.
    given: sections that the command line itself sets (--dataset, --from), stronger than the file, weaker than --set.
    Raises ConfigError that lists every mistake.
    """
    tree, marks = _source(source)
    problems: list[str] = []
    for key, value in (given or {}).items():
        tree[key] = value
        marks = {path: mark for path, mark in marks.items() if path[:1] != (key,)}
        marks[key,] = "command line"
    for item in overrides:
        _override(tree, marks, item, problems)
    if stage is None:
        stage = "finetune" if tree.get("stage") == "finetune" else "pretrain"
    check = _Check(marks, problems)
    config = check.run(tree, stage)
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    stem = source.stem if isinstance(source, Path) else None
    if name is None:
        name = stem or (
            Path(str(config.dataset.options.get("path") or config.dataset.arch or config.dataset.name)).stem
            if config.dataset
            else "run"
        )
    return config.replace(name=re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "run")


def read(
    source: Path | str | Mapping[str, Any] | None,
    *,
    stage: Any = None,
    ref: str | Path | None = None,
    dataset: str | None = None,
    overrides: Sequence[str] = (),
    name: str | None = None,
    own_backbone: bool = False,
    allow_partial: bool = False,
) -> RunConfig:
    """The frozen config of a run from what the command line gives. Raises ConfigError."""
    given: dict[str, Any] = {}
    if ref is not None:
        given["from"] = str(ref)
    if dataset is not None:
        own = peek(Path(ref) / "config.yaml").get("dataset") if ref is not None else None
        given["dataset"] = dataset_section(dataset, str(own.get("name")) if isinstance(own, dict) else None)
    if own_backbone:
        given["backbone"] = None
    if isinstance(source, str):
        source = Path(source)
    stage = stage or "pretrain"
    if own_backbone and stage == "pretrain":
        given["backbone"] = "mlp"  # a place holder: the object that was handed in takes its place
    settings = load(source, stage=stage, overrides=overrides, given=given, name=name)
    if own_backbone:
        settings = settings.replace(backbone=None)
    if allow_partial:
        settings = settings.replace(carry=settings.carry.model_copy(update={"allow_partial": True}))
    if settings.stage == "finetune" and settings.source is None and not own_backbone:
        raise ConfigError(
            "finetuning starts from a checkpoint: --from REF",
            "REF is a run, a checkpoint, a file of weights, or SOURCE/ARCH@WEIGHTS",
        )
    return settings


def table_header(path: Path) -> list[str]:
    """The column names of a CSV, TSV or Parquet file; [] for a folder."""
    if not path.is_file():
        return []
    if path.suffix.lower() == ".parquet":
        return parquet.columns(str(path))
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
    return [name.strip().strip('"') for name in line.split(max(",;\t", key=line.count))]


def _suffixes() -> dict[str, str]:
    """Suffix of a file -> the dataset plug-in that reads it from class folders."""
    return {suffix: plugin.name for plugin in plugins("datasets").values() for suffix in plugin.suffixes}


def _reader_of(folder: Path) -> str:
    """The dataset plug-in for what lies below a folder: images, unless there are none and another plug-in's files are."""
    known, seen = _suffixes(), set[str]()
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if inside != str(folder):  # loose files have no class
            seen |= {known[suffix] for file in files if (suffix := os.path.splitext(file)[1].lower()) in known}
        if "image_folder" in seen:
            break
    return "image_folder" if "image_folder" in seen or not seen else min(seen)


def _reader_of_table(file: Path) -> str:
    """The dataset plug-in for a table: of its rows, or of the files that its column `path` names."""
    header = table_header(file)
    if "path" not in header:
        return "csv_table"
    at, known = header.index("path"), _suffixes()
    with (
        io.StringIO(parquet.as_csv(str(file), 1))
        if file.suffix.lower() == ".parquet"
        else open(file, encoding="utf-8-sig", errors="replace", newline="")
    ) as text:
        first = text.readline()
        rows = csv.reader(text, delimiter=max(",;\t", key=first.count))
        row = next((row for row in rows if len(row) > at), None)
    reader = known.get(os.path.splitext(row[at].strip())[1].lower()) if row is not None else None
    return "csv_images" if reader in (None, "image_folder") else str(reader)


def dataset_section(text: str, reader: str | None = None) -> dict[str, Any] | str:
    """--dataset X as a config section: an existing path first, else a name. reader: the dataset plug-in of the checkpoint
    that it is for, which may read tables in its own way. Raises ConfigError."""
    path = Path(text)
    if path.is_dir():
        return {"name": _reader_of(path), "path": text}
    if path.is_file():
        if path.suffix.lower() in (".jsonl", ".ndjson", ".txt"):
            return {"name": "text", "path": text}
        if path.suffix.lower() not in (".csv", ".tsv", ".parquet"):
            raise ConfigError(
                f"--dataset {clean(text)}: a folder, a table (CSV, TSV, Parquet), texts (JSONL, TXT), or a dataset's name"
            )
        known = plugins("datasets").get(reader or "")
        return {"name": known.name if known is not None and known.tables else _reader_of_table(path), "path": text}
    if (os.sep in text and text.count("/") != 1) or text.startswith((".", "~", "/")):
        raise ConfigError(f"--dataset {clean(text)}: no such file or folder")
    try:
        find("datasets", text)
    except ConfigError as error:
        raise ConfigError(f"--dataset {clean(text)}: no such path, and {error.message}", *error.hints) from None
    return text


def peek(file: Path) -> dict[str, Any]:
    """The sections of a file as they are, to see what it is about; {} when it is not a config."""
    try:
        return _source(file)[0]
    except ConfigError:
        return {}


def choice(section: str, raw: Any) -> Choice:
    """One plug-in section by itself, as `load` reads it. Raises ConfigError."""
    check = _Check({}, [])
    chosen = check._choice({section: raw}, section)
    if chosen is None:
        raise ConfigError("\n".join(check.problems))
    return chosen


def seconds(budget: str) -> float:
    """'90s', '10m', '1.5h' -> seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", budget)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"budget must be a time such as 90s, 10m or 2h, not '{clean(budget)}'")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def size(text: str) -> float:
    """'500MB', '20GB' -> bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(MB|GB|TB)\s*", text)
    if match is None:
        raise ValueError(f"cache must be auto, off, or a size such as 20GB, not '{clean(text)}'")
    return float(match[1]) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[match[2]]


# ---------------------------------------------------------------- YAML, guarded

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,30})")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NONFINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
Marks = dict[tuple[Any, ...], str]  # path in the tree -> "file:line"


def parse_yaml(text: str, where: str) -> tuple[Any, Marks]:
    """Parse one plain YAML document into dicts, lists and scalars, with the line of every key.

    Refused: aliases and anchors (a 300-byte bomb unfolds to gigabytes), tags, duplicate keys, several documents, deep
    nesting, huge files. `1e-3` is a number; yes, no, on and off are text, as in YAML 1.2.
    """
    if len(text) > 256 * 1024:
        raise ConfigError(f"{where}: larger than 256 KB: this is not a config")
    try:
        depth = nodes = documents = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            start: Any = event.start_mark
            line = start.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            nodes += isinstance(event, yaml.NodeEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ConfigError(
                    f"{where}:{line}: YAML anchors and aliases (&, *) are not allowed; write the value out"
                )
            if (tag := getattr(event, "tag", None)) is not None:
                raise ConfigError(f"{where}:{line}: YAML tags ({clean(tag)}) are not allowed")
            if documents > 1:
                raise ConfigError(f"{where}:{line}: more than one document in the file")
            if depth > 32 or nodes > 5000:
                raise ConfigError(f"{where}:{line}: nested too deeply or too long for a config")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {clean(error.problem or error.context)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {clean(error)}") from None
    marks: Marks = {}
    problems: list[str] = []
    tree = _plain(root, where, (), marks, problems) if root is not None else {}
    if problems:
        raise ConfigError("\n".join(problems))
    return tree, marks


def _plain(node: yaml.Node, where: str, path: tuple[Any, ...], marks: Marks, problems: list[str]) -> Any:
    marks[path] = f"{where}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, (*path, i), marks, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            at = f"{where}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{at}: a key must be a word")
                continue
            key = key_node.value
            if key in out:
                problems.append(f"{at}: the key '{clean(key)}' is given twice")
            out[key] = _plain(value_node, where, (*path, key), marks, problems)
            marks[(*path, key)] = at
        return out
    quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    return node.value if quoted else scalar(node.value)


def scalar(text: str) -> Any:
    """A plain YAML scalar as YAML 1.2 reads it: null, booleans, numbers (also 1e-3), else text."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text):
        return float(text)
    if _NONFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _source(source: Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], Marks]:
    if source is None:
        return {}, {}
    if not isinstance(source, Path):
        return _deep_copy(source), {}
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [str(path) for path in source.parent.glob("*.y*ml")] if source.parent.is_dir() else []
        raise ConfigError(f"{clean(source)}: no such config file{nearest(str(source), siblings)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from None
    tree, marks = parse_yaml(text, str(source))
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a config is a mapping of sections, as in `dataset: {{name: digits}}`")
    return tree, marks


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _deep_copy(item) for key, item in value.items()}
    return [_deep_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _override(tree: dict[str, Any], marks: Marks, item: str, problems: list[str]) -> None:
    """Apply one `a.b=c`: bare strings are expanded first, setting a section replaces it."""
    where = f"--set {clean(item)}"
    key, equals, text = item.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        problems.append(f"{where}: write it as --set section.key=value")
        return
    try:
        value, _ = parse_yaml(text, where)
    except ConfigError as error:
        problems.append(error.message)
        return
    target = tree
    for part in path[:-1]:
        inner = target.get(part)
        if isinstance(inner, str):
            inner = {"strategy" if part == "transfer" else "name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            problems.append(f"{where}: '{part}' is not a section")
            return
        target[part] = inner
        target = inner
    target[path[-1]] = None if text == "" else value
    for old in [mark for mark in marks if mark[: len(path)] == path]:
        del marks[old]
    marks[path] = where


# ---------------------------------------------------------------- checking


class _Check:
    """Turns a tree into a RunConfig and collects every problem on the way."""

    def __init__(self, marks: Marks, problems: list[str]) -> None:
        self.marks, self.problems = marks, problems

    def say(self, path: tuple[Any, ...], message: str) -> None:
        mark = next((self.marks[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.marks), None)
        key = ".".join(str(part) for part in path)
        self.problems.append(f"{mark + ': ' if mark else ''}{clean(key) + ': ' if key else ''}{message}")

    def run(self, tree: dict[str, Any], stage: Literal["pretrain", "finetune"]) -> RunConfig | None:
        known = [*PLUGIN_SECTIONS, *SECTIONS, "seed", "stage", "from"]
        for key in tree:
            if key not in known:
                self.say((key,), f"unknown section{nearest(key, known)}")
        if (written := tree.get("stage", stage)) != stage:
            self.say(("stage",), f"this config is for `fmeco {clean(written)}`, not for `fmeco {stage}`")
        source = tree.get("from")
        if source is not None and not isinstance(source, str):
            self.say(("from",), "expected text: a run, a checkpoint, a file or SOURCE/ARCH@WEIGHTS")
        seed = tree.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**31:
            self.say(("seed",), f"expected a whole number from 0 to 2147483647, got {_shown(seed)}")
        transfer = dict(self._mapping(tree, "transfer"))
        common = {key: transfer.pop(key) for key in Carry.model_fields if key in transfer}
        carry = self._section(Carry, common, ("transfer",))
        if common and not transfer:
            transfer = {"strategy": DEFAULT_NAMES["transfer"]}
        if stage == "pretrain" and source is None:
            if transfer:
                self.say(("transfer",), "only for runs that start from a checkpoint (--from)")
            if tree.get("backbone") is None:
                self.say(("backbone",), "missing: a pretraining config names one, as in `backbone: resnet18`")
        tree = {**tree, "optimizer": tree.get("optimizer") or {}, "schedule": tree.get("schedule") or {}}
        if stage == "finetune" and (tree["optimizer"] == "adamw" or isinstance(tree["optimizer"], Mapping)):
            given = {} if tree["optimizer"] == "adamw" else tree["optimizer"]
            if given.get("name", "adamw") == "adamw":
                tree["optimizer"] = {"lr": FINETUNE_LR, **given}
        choices = {s: self._choice(tree, s) for s in PLUGIN_SECTIONS if s != "transfer"}
        if transfer or source is not None or stage == "finetune":
            choices["transfer"] = self._choice({"transfer": transfer}, "transfer")
        sections = {name: self._section(model, self._mapping(tree, name), (name,)) for name, model in SECTIONS.items()}
        if self.problems:
            return None
        parts: dict[str, Any] = {"transfer": None, "carry": carry, **choices, **sections}
        return RunConfig(stage=stage, source=source, seed=seed, name="", **parts)

    def _mapping(self, tree: Mapping[str, Any], section: str) -> Mapping[str, Any]:
        value = tree.get(section)
        if value is None:
            return {}
        if isinstance(value, str) and section == "transfer":
            return {"strategy": value}
        if not isinstance(value, Mapping):
            self.say((section,), f"expected a section of keys, got {_shown(value)}")
            return {}
        return value

    def _choice(self, tree: Mapping[str, Any], section: str) -> Choice | None:
        word = "strategy" if section == "transfer" else "name"
        return self._pick(tree.get(section), PLUGIN_SECTIONS[section], (section,), word, DEFAULT_NAMES.get(section))

    def _pick(
        self, value: Any, kind: str, path: tuple[Any, ...], word: str = "name", default: str | None = None
    ) -> Choice | None:
        """The plug-in of a kind that the value at `path` names, with its keys."""
        if value is None:
            return None
        if isinstance(value, str):
            value = {word: value}
        if not isinstance(value, Mapping):
            self.say(path, f"expected a name or a section of keys, got {_shown(value)}")
            return None
        name = value.get(word, default)
        if not isinstance(name, str):
            self.say(
                (*path, word) if word in value else path,
                f"{'missing: ' if name is None else ''}`{word}:` picks one of: {', '.join(plugins(kind))}",
            )
            return None
        try:
            plugin, arch = find(kind, name)
        except FmecoError as error:
            self.say(
                (*path, word),
                error.message.removeprefix(f"{kind}: ") + "".join(f"; {h}" for h in error.hints),
            )
            return None
        options = {key: item for key, item in value.items() if key != word}
        for old, new in plugin.renamed.items():
            if old in options:
                if new in options:
                    self.say((*path, old), f"is the old name of '{new}', which is also given")
                options[new] = options.pop(old)
                self.marks[*path, new] = self.marks.get((*path, old), self.marks.get(path, ""))
        model = self._section(plugin.model, options, path)
        if model is None:
            return None
        checked = model.model_dump()
        for key, inner in plugin.nested.items():
            chosen = {one: self._pick(raw or "", inner, (*path, key, one)) for one, raw in checked[key].items()}
            checked[key] = {one: found.to_dict() for one, found in chosen.items() if found is not None}
        return Choice(kind, plugin.name, arch, checked)

    def _section(self, model: type[BaseModel], raw: Mapping[str, Any], path: tuple[Any, ...]) -> BaseModel | None:
        try:
            return model.model_validate(dict(raw))
        except ValidationError as error:
            also = Carry.model_fields if path == ("transfer",) else ()
            for place, message in _explain(error, model, raw, also):
                self.say((*path, *place), message)
            return None


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping {key: value}",
    "none_required": "null",
    "finite_number": "a finite number",
    "mapping_type": "a mapping {key: value}",
    "tuple_type": "a list",
}


def _explain(
    error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any], also: Iterable[str]
) -> Iterable[tuple[tuple[Any, ...], str]]:
    """pydantic's errors as one sentence per key. A union gives one error per member; they become one 'or'.

    also: keys that the section may have beside the model's.
    """
    grouped: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        place: list[Any] = []
        value: Any = raw
        for part in item["loc"]:  # keep what is a place in the config; union members are not
            if isinstance(value, list) and isinstance(part, int):
                value = value[part]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            elif item["type"] in ("missing", "extra_forbidden") and part == item["loc"][-1]:
                pass
            else:
                break
            place.append(part)
        grouped.setdefault(tuple(place), []).append(item)
    for where, items in grouped.items():
        first = items[0]
        if first["type"] == "extra_forbidden":
            valid = [*model.model_fields, *also]
            yield where, f"unknown key{nearest(str(where[-1]), valid)}; valid keys: {', '.join(valid) or 'none'}"
        elif first["type"] == "missing":
            yield where, "missing"
        elif first["type"] == "value_error":
            message = str(first["ctx"]["error"])
            key = message.split()[0]  # a rule of the whole section names its key first
            yield ((key,) if not where and key in raw else where), message
        else:
            wanted: list[str] = []
            for item in items:
                limits = item.get("ctx", {})
                if item["type"] == "literal_error":
                    wanted.append(limits["expected"].replace("'", ""))
                elif item["type"] in _WANTED:
                    wanted.append(_WANTED[item["type"]])
                elif bound := [
                    (sign, limits[key])
                    for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
                    if key in limits
                ]:
                    wanted.append(" and ".join(f"a number {sign} {limit}" for sign, limit in bound))
                else:
                    wanted.append(item["msg"])
            guess = ""
            if isinstance(first["input"], str):
                words = [word.strip() for text in wanted for word in re.split(r",| or ", text)]
                guess = nearest(first["input"], words)
            yield where, f"expected {' or '.join(dict.fromkeys(wanted))}, got {_shown(first['input'])}{guess}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    return f"the text '{clean(value, 60)}'" if isinstance(value, str) else clean(value, 60)


# ---------------------------------------------------------------- the schema, for editors


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, over every plug-in that is installed."""
    properties: dict[str, Any] = {
        "stage": {"enum": ["pretrain", "finetune"]},
        "from": {"type": "string"},
        "seed": {"type": "integer", "minimum": 0},
    }
    for section, kind in PLUGIN_SECTIONS.items():
        word = "strategy" if section == "transfer" else "name"
        options = []
        bare: list[str] = []
        patterns: list[dict[str, Any]] = []
        for plugin in plugins(kind).values():
            names = plugin.spellings or [plugin.name]
            spelled = {"pattern": f"^{plugin.name}/."} if plugin.open else {"enum": names}
            if plugin.open:
                patterns.append({"type": "string", **spelled})
            else:
                bare += names
            body = plugin.model.model_json_schema()
            body.pop("title", None)
            body["description"] = plugin.help
            body["properties"] = {word: spelled, **body.get("properties", {})}
            if section == "transfer":
                body["properties"] |= Carry.model_json_schema()["properties"]
            body["required"] = [word, *body.get("required", [])]
            options.append(body)
        properties[section] = {"anyOf": [{"enum": bare}, *patterns, *options]}
    for name, model in SECTIONS.items():
        properties[name] = {key: value for key, value in model.model_json_schema().items() if key != "title"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fmeco config",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


__all__ = [
    "Choice",
    "Evaluate",
    "RunConfig",
    "Train",
    "choice",
    "dataset_section",
    "json_schema",
    "load",
    "parse_yaml",
    "peek",
    "read",
    "scalar",
    "seconds",
    "size",
]
