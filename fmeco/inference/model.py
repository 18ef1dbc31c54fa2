"""Using a checkpoint: load, measure, predict, embed, info. Reads backbone, objective and data description only."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs, transplant
from fmeco.config.dataset_argument import dataset_section, table_header
from fmeco.config.load import choose, load_config
from fmeco.config.parser import parse_yaml
from fmeco.core import Backbone, Batch, Data, DataSpec, Objective, Samples
from fmeco.data.loader import channels_last, evaluation_batches
from fmeco.data.reading import choose_reading
from fmeco.errors import CheckpointError, ConfigError, DataError, clean, known_errors, listing, readable
from fmeco.features import forward
from fmeco.files import disk_error
from fmeco.log import say
from fmeco.plugins.registry import find, require
from fmeco.training.assemble import build_backbone

TABLE_LAYOUT = (
    "target",
    "features",
    "drop",
    "task",
    "image_column",
    "path_column",
    "label_column",
    "separator",
    "lowercase",
)
TEXT_LAYOUT = ("text", "label", "columns", "documents")
SERIES_LAYOUT = ("time", "columns", "id", "value", "context", "horizon", "season", "missing")


@dataclass
class Model:
    """A trained model and everything its inputs need, loaded by `fmeco.load(REF)`."""

    checkpoint: checkpoint.Checkpoint
    spec: DataSpec
    objective: Objective
    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False

    def predict(self, inputs: Sequence[str | Path], *, batch_size: int = 64) -> list[dict[str, Any]]:
        """One dict per input, in order: input, prediction, probability (where there is one), whatever else the objective
        tells, error (or None).

        inputs: files (or folders of them, or tables, whose rows count one by one), read exactly as in training.
        """
        samples = _reader(self.spec)(self.spec, [str(path) for path in inputs])
        for note in samples.notes:
            say(note)
        rows: list[dict[str, Any]] = []
        own = type(samples).answers is not Samples.answers  # rows of another form
        columns: dict[str, None] = {} if own else {"prediction": None, "probability": None}
        for batch, positions, bad in self._batches(samples, batch_size):
            decoded = iter(
                self.objective.decode(forward.forward(self.objective, batch, "predict", self.device, self.precision))
                if len(batch)
                else []
            )
            for i in positions:
                for answer in [{}] if i in bad else samples.answers(i, next(decoded)):
                    columns |= dict.fromkeys(answer)
                    rows.append({"input": readable(samples.name(i)), "answer": answer, "error": bad.get(i)})
        return [
            {"input": row["input"], **{key: row["answer"].get(key) for key in columns}, "error": row["error"]}
            for row in rows
        ]

    def embed(self, samples: Samples, *, batch_size: int = 64) -> tuple[Tensor, list[int], list[str]]:
        """Features (N, D) of the samples that can be read, their positions, and what could not be read."""
        out: list[Tensor] = []
        kept: list[int] = []
        skipped: list[str] = []
        for batch in self._once(samples, batch_size):
            skipped += batch.skipped
            if len(batch):
                out.append(forward.forward(self.objective, batch, "vector", self.device, self.precision)["vector"])
                kept += batch.index.tolist()
        return torch.cat(out) if out else torch.zeros(0, self.objective.product.width), kept, skipped

    def _once(self, samples: Samples, size: int) -> Iterator[Batch]:
        """The samples' batches, gone through once."""
        data = Data(self.spec, test=samples)
        reading = choose_reading("auto", data, samples, self.device, once=True)
        return evaluation_batches(
            data, samples, batch_size=size, reading=reading, device=self.device, channels_last=self.channels_last
        )

    def _batches(self, samples: Samples, size: int) -> Iterator[tuple[Batch, range, dict[int, str]]]:
        """Batches, the positions that each is of, and those of them that could not be read."""
        start = 0
        for batch in self._once(samples, size):
            stop = min(start + size, len(samples))
            good = set(batch.index.tolist())
            missing = [i for i in range(start, stop) if i not in good]
            yield batch, range(start, stop), dict(zip(missing, batch.skipped, strict=True))
            start = stop


@known_errors()
def load(ref: str | Path, *, backbone: Backbone | None = None) -> Model:
    """A trained model, ready to use. Runs no code of the checkpoint. Raises ConfigError, CheckpointError."""
    found = refs.find_checkpoint(ref)
    raw, spec = found.meta["config"], found.spec
    if backbone is None and "backbone" not in raw:
        raise CheckpointError(
            f"{clean(ref)} needs {listing(found.meta.get('needs', []))}",
            "hand it in: fmeco.load(REF, backbone=...)",
        )
    refs.check_needs(found, ref, "objectives", *(["backbones"] if backbone is None else []))
    own = None if backbone is not None else choose("backbone", raw["backbone"])
    body = backbone or build_backbone(own, spec)
    chosen = choose("objective", raw["objective"])
    objective: Objective = chosen.plugin.build({"backbone": body, "spec": spec}, chosen.options)
    transplant.load_objective(objective, found)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective.to(device).eval()
    # As its metrics were measured, where this device can.
    precision, last = str(found.meta["precision"]), channels_last(raw["train"]["channels_last"], spec)
    if precision == "fp16" and device.type == "cpu":
        precision = "fp32"
    if last:
        objective.to(memory_format=torch.channels_last)
    return Model(found, spec, objective, device, precision, last)


class Measured(NamedTuple):
    """A checkpoint on a split: metrics, and for each of the samples that could be read its name and row."""

    model: Model
    split: str
    names: list[str]
    metrics: dict[str, float]
    rows: dict[str, Tensor]
    samples: Samples  # of the split, all of them: rows["index"] are positions in it

    @property
    def metric(self) -> str:
        """The one that picked the run's best checkpoint, or the objective's first, where that was a probe."""
        evaluating = self.model.checkpoint.meta["config"]["evaluate"]
        directions, best = self.model.objective.directions, str(evaluating["best"]).removeprefix("val_")
        return best if best in directions else next(iter(directions))


def measure(ref: str | Path, dataset: str | None, split: str | None, overrides: Sequence[str]) -> Measured:
    """A checkpoint on a split: of the dataset it was trained on, or of another with the same classes."""
    model = load(ref)
    data, on_bad_sample = data_for(model, ref, dataset, overrides)
    part = split or ("test" if data.test is not None else "val" if data.val is not None else "train")
    samples = data.split(part)
    for note in data.notes:
        say(note)
    for name, target in model.spec.targets.items():
        other = data.spec.targets.get(name)
        if other is None or (other.kind, other.classes) != (target.kind, target.classes):
            raise DataError(f"the dataset's target '{name}' is not the checkpoint's")
    data = dataclasses.replace(data, spec=dataclasses.replace(data.spec, inputs=model.spec.inputs))
    reading = choose_reading("auto", data, samples, model.device, once=True)
    batches = evaluation_batches(
        data, samples, batch_size=64, reading=reading, device=model.device, channels_last=model.channels_last
    )
    bad: list[str] | None = [] if on_bad_sample == "skip" else None
    metrics, rows = forward.evaluate(model.objective, batches, model.device, model.precision, bad=bad)
    for one in bad or []:
        say(f"left out: {one}")
    return Measured(model, part, [samples.name(i) for i in rows["index"].tolist()], metrics, rows, samples)


@known_errors()
def predict(
    ref: str | Path,
    inputs: Sequence[str],
    *,
    output: Path | None = None,
    plot: Path | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Predict files, folders or tables; with `output` (.csv or .jsonl) also write the rows there, and with `plot` (.png) a
    picture of them, where the dataset plug-in draws one. Raises DataError when nothing could be read."""
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--output {output}: expected a name that ends in .csv or .jsonl")
    if plot is not None and plot.suffix != ".png":
        raise ConfigError(f"--plot {plot}: expected a name that ends in .png")
    for path in (output, plot):
        _free(path, force)
    model = load(ref)
    draw = getattr(_reading(model.spec), "plot", None)
    if plot is not None and draw is None:
        raise ConfigError(
            f"--plot: there is no picture of predictions of {model.spec.modality} data", "it draws series"
        )
    absent = [one for one in inputs if not os.path.exists(one)]
    if absent and not getattr(_reading(model.spec), "SENTENCES", False):
        raise DataError(f"no such file or folder: {listing(absent)}")
    rows = model.predict(inputs)
    if rows and all(row["error"] for row in rows):
        raise DataError(f"none of the {len(rows)} inputs could be read; the first: {rows[0]['error']}")
    if output is not None:
        try:
            with open(output, "w", encoding="utf-8", newline="") as file:
                if output.suffix == ".jsonl":
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                else:
                    write_csv(rows, file)
        except OSError as error:
            raise disk_error(error, output, 0) from None
    if plot is not None and draw is not None:
        draw(model.spec, inputs, rows, plot)
    return rows


def _free(output: Path | None, force: bool) -> None:
    if output is not None and output.exists() and not force:
        raise ConfigError(f"{output} exists already", "--force replaces it")


def write_csv(rows: Sequence[Mapping[str, Any]], file: Any) -> None:
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["input", "prediction", "probability", "error"])
    writer.writeheader()
    rounded = {key for key in writer.fieldnames if key.endswith("probability")}
    writer.writerows(
        {key: f"{value:.6f}" if key in rounded and value is not None else value for key, value in row.items()}
        for row in rows
    )


@known_errors()
def embed(
    ref: str | Path,
    *,
    dataset: str | None,
    output: Path,
    split: str | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Write features (N, D), names, and labels where there are any, of a dataset to an .npz file."""
    if output.suffix != ".npz":
        raise ConfigError(f"--output {output}: expected a name that ends in .npz")
    _free(output, force)
    model = load(ref)
    # A new task's labels are its own: only how inputs are made is taken from the checkpoint.
    data, _ = data_for(model, ref, dataset, overrides, known=model.spec.preprocessing_only() if dataset else None)
    samples = data.split(split or ("test" if data.test is not None else "val"))
    features, kept, skipped = model.embed(samples)
    for one in skipped:
        say(one)
    arrays: dict[str, Any] = {
        "features": features.numpy(),
        "names": np.array([samples.name(i) for i in kept]),
    }
    for name, target in data.spec.targets.items():
        values = samples.targets.get(name)
        if isinstance(values, Tensor):
            arrays[name] = values[kept].numpy()
            if target.classes:
                arrays[f"{name}_classes"] = np.array(target.classes)
    try:
        np.savez(output, **arrays)
    except OSError as error:
        raise disk_error(error, output, 0) from None
    return {
        "output": str(output.resolve()),
        "samples": len(kept),
        "width": int(features.shape[1]),
        "skipped": len(skipped),
    }


def data_for(
    model: Model,
    ref: str | Path,
    dataset: str | None,
    overrides: Sequence[str],
    known: DataSpec | None = None,
) -> tuple[Data, str]:
    """The dataset to use a checkpoint on: --dataset, or the one it was trained on, each read by the checkpoint's spec;
    and what to do about bad samples."""
    trained = model.checkpoint.meta["config"]
    whole = dataset is not None and Path(dataset).exists()
    if dataset is not None:
        raw: Any = dataset_section(dataset, model.spec.reader)
        options = trained.get("dataset", {})
        table = table_header(Path(dataset))
        if isinstance(raw, dict) and table and raw["name"] == options.get("name"):  # columns are named as in training
            layout = (*TABLE_LAYOUT, *TEXT_LAYOUT, *SERIES_LAYOUT)
            raw = {**{key: options[key] for key in layout if key in options}, **raw}
            if options.get("split_column") in table:
                raw["split_column"] = options["split_column"]
    else:
        refs.check_needs(model.checkpoint, ref, "datasets")
        run = Path(ref) / "config.yaml"
        raw = trained.get("dataset")
        if run.is_file():  # holds absolute paths
            raw = parse_yaml(run.read_text("utf-8"), str(run))[0].get("dataset")
        if raw is None:
            raise ConfigError("this checkpoint was trained on data given in Python", "name a dataset: --dataset X")
    asked = {"from": "-", "dataset": raw, "train": {"on_bad_sample": trained["train"]["on_bad_sample"]}}
    settings = load_config(asked, stage="finetune", overrides=overrides, name="-")
    section = settings.dataset
    assert section is not None
    data: Data = section.plugin.build(
        {"known": known or model.spec, "whole": whole, "arch": section.arch}, section.options
    )
    if data.spec.modality != model.spec.modality:
        raise CheckpointError(
            f"the checkpoint is for {model.spec.modality} data, and this dataset holds {data.spec.modality} data"
        )
    return data, settings.train.on_bad_sample


def _reading(spec: DataSpec) -> ModuleType | None:
    """The plug-in that reads new inputs. SENTENCES = True in it: an input may be a text itself instead of a path."""
    if spec.reader:
        require("reading these inputs", [("datasets", spec.reader)])
    return find("datasets", spec.reader)[0].load() if spec.reader else None


def _reader(spec: DataSpec) -> Callable[[DataSpec, Sequence[str]], Samples]:
    reader: Callable[[DataSpec, Sequence[str]], Samples] | None = getattr(_reading(spec), "read", None)
    if reader is None:
        raise ConfigError(
            f"the dataset plug-in '{spec.reader or '?'}' has no read(spec, sources): it cannot read new inputs"
        )
    return reader


def info(ref: str | Path) -> dict[str, Any]:
    """What a checkpoint is, after checking every file of it against the manifest."""
    found = refs.find_checkpoint(ref)
    checkpoint.verify(found)
    meta, spec = found.meta, found.spec
    outside = {"name": "given in Python"}
    backbone, objective, dataset = (
        meta["config"].get(section, outside) for section in ("backbone", "objective", "dataset")
    )
    return {
        "checkpoint": str(found.path),
        "id": found.id,
        "verified": len(found.manifest["files"]),
        "format": found.manifest["format"],
        "stage": meta["stage"],
        "step": meta["step"],
        "epoch": round(meta["epoch"], 4),
        "backbone": backbone["name"],
        "objective": objective["name"],
        "parameters": meta["parameters"],
        "dataset": dataset["name"],
        "modality": spec.modality,
        "targets": {name: ", ".join(target.classes) or target.kind for name, target in spec.targets.items()},
        "preprocessing": {
            key: value
            for key, value in spec.preprocessing.items()
            if not isinstance(value, list) and len(str(value)) < 200  # a tokenizer is no reading matter
        },
        "sizes": dict(spec.sizes),
        "metrics": dict(meta["metrics"]),
        "parents": ", ".join(found.manifest["parents"]) or "none",
        "licence": meta["licence"] or "not stated",
        "needs": ", ".join(meta["needs"]) or "fmeco alone",
        "versions": meta["versions"],
        "resumable": "trainer.json" in found.manifest["files"] and (found.path / "trainer.json").exists(),
    }
