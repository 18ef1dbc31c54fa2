"""Keep what an evaluation found, for the report: figures with an interval, the objective's parts, and single samples."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fmeco.core.data import DataSpec, Samples
from fmeco.core.model import Objective
from fmeco.core.page import Cases, Curves, Matrix, Part, Table
from fmeco.data.spec_reader import reader_module
from fmeco.errors import ConfigError, DataError, clean, readable
from fmeco.files import replacing
from fmeco.nn.intervals import ANSWER_DRAWS, METRIC_DRAWS, bootstrap, measure_at

FOLDER = "findings"  # in a run
MOST_BYTES = 64_000_000  # of the rows of an evaluation to keep on the disk
SIDE = 176  # pixels of a picture's longer side
LETTERS = 600  # of a sample's text
KINDS = {kind.__name__: kind for kind in (Table, Curves, Matrix, Cases)}


def own_metric(objective: Objective, best: str) -> str:
    """Return the metric that selected a run's best checkpoint, or the objective's first one if a probe did."""
    return best if best in objective.directions else next(iter(objective.directions))


def keep_rows(run: Path, objective: Objective, rows: Mapping[str, Tensor], step: int) -> None:
    """Write the rows of the best evaluation so far to the run, if its objective makes a page of them. Raises DiskError."""
    size = sum(x.numel() * x.element_size() for x in rows.values())
    if type(objective).page is Objective.page or size > MOST_BYTES:
        return
    (run / FOLDER).mkdir(exist_ok=True)
    with replacing(run / FOLDER / "val.safetensors", resumable=True) as temporary:
        tensors = {name: x.contiguous() for name, x in rows.items()}
        temporary.write_bytes(safetensors.torch.save(tensors, {"step": str(step)}))


def kept_rows(run: Path, step: int) -> dict[str, Tensor] | None:
    """Read the rows of the validation split that a step's evaluation wrote; None without them."""
    file = run / FOLDER / "val.safetensors"
    try:
        with safetensors.safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("step") != str(step):
                return None
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
    except (OSError, safetensors.SafetensorError):
        return None


def find(
    objective: Objective,
    spec: DataSpec,
    samples: Samples,
    rows: dict[str, Tensor],
    *,
    split: str,
    metric: str,
    step: int,
    patience: float = math.inf,
) -> dict[str, Any]:
    """Describe an evaluation: its metrics, the interval of `metric`, the objective's parts, and the samples in them.

    patience: seconds that the interval may take.

    Returns values for JSON. An interval that is not defined, or would take longer, is None.
    """
    metrics = objective.metrics(rows)
    parts = objective.page(rows)
    cases = sorted({at for part in parts if isinstance(part, Cases) for at in part.at})
    index = rows["index"].tolist()
    return {
        "split": split,
        "samples": len(index),
        "step": step,
        "metric": metric if metric in metrics else None,
        "interval": _interval(objective, rows, metric, samples.block, patience) if metric in metrics else None,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "directions": dict(objective.directions),
        "parts": [{"kind": type(part).__name__, **dataclasses.asdict(part)} for part in parts],
        "samples_shown": {str(at): _shown(spec, samples, index[at]) for at in cases},
    }


def _interval(
    objective: Objective, rows: dict[str, Tensor], metric: str, block: int, patience: float
) -> list[float] | None:
    """Compute the 95% interval of a metric by a bootstrap over samples."""
    correct = objective.correct(rows) if metric == next(iter(objective.directions)) else None
    count = len(rows["index"])
    right = None if correct is None else correct.double()

    def measure(at: Tensor) -> float:
        return measure_at(objective, rows, metric, at) if right is None else float(right[at].mean())

    draws = METRIC_DRAWS if right is None else ANSWER_DRAWS
    began = time.monotonic()
    measure(torch.arange(count))
    if draws * (time.monotonic() - began) > patience:
        return None
    low, high = bootstrap(count, draws, 0x66696E64, measure, block)
    return None if math.isnan(low) else [low, high]


def _shown(spec: DataSpec, samples: Samples, index: int) -> dict[str, str]:
    """Show a sample: its name and, if the dataset's plug-in can `show` it, a picture as a data URI or a text."""
    shown = {"name": readable(samples.name(index))}
    try:
        show = getattr(reader_module(spec), "show", None)
        seen = show(spec, samples[index]) if show is not None else None
    except (ConfigError, DataError) as error:  # of a file that has gone since, or a plug-in that is not loaded
        return {**shown, "words": clean(error.message)}
    if isinstance(seen, str):
        shown["words"] = seen[:LETTERS] + ("\u2026" if len(seen) > LETTERS else "")
    elif seen is not None:
        shown["picture"] = picture_uri(seen)
    return shown


def picture_uri(image: Any, side: int = SIDE) -> str:
    """Encode an image of Pillow as a small JPEG in a data URI."""
    image = image.convert("RGB")
    if max(image.size) * 2 <= side:  # enlarged as squares, so that single pixels can be told apart
        factor = side // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), resample=0)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write(run: Path, found: Mapping[str, Any]) -> None:
    """Write what was found on a split to the run. Raises DiskError."""
    (run / FOLDER).mkdir(exist_ok=True)
    with replacing(run / FOLDER / f"{found['split']}.json") as temporary:
        temporary.write_text(json.dumps(found, ensure_ascii=False) + "\n", "utf-8")


def read(run: Path, step: int | None = None) -> list[dict[str, Any]]:
    """Read what was found on the splits of a run, test before val; damaged files are left out.

    step: leave out what was found of other checkpoints than that of this step, such as before the run was resumed.
    """
    found = []
    for split in ("test", "val"):
        try:
            one = json.loads((run / FOLDER / f"{split}.json").read_text("utf-8"))
            one["parts"] = [_part(part) for part in one["parts"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if step is None or one.get("step") == step:
            found.append(one)
    return found


def _part(value: dict[str, Any]) -> Part:
    kind = KINDS[value.pop("kind")]
    made: Part = kind(**value)
    return made
