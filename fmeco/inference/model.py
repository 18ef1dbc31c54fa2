"""Load a trained model: the backbone, objective and data description of a checkpoint, and nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs, transplant
from fmeco.config.check import choose
from fmeco.core.data import Batch, Data, DataSpec, Samples
from fmeco.core.model import Backbone, Objective
from fmeco.data.loader import channels_last, evaluation_batches
from fmeco.data.reading import choose_reading
from fmeco.data.spec_reader import reader_module
from fmeco.errors import CheckpointError, ConfigError, clean, known_errors, listing, readable
from fmeco.features import forward
from fmeco.log import say


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
        """Predict each input. Returns one dict per input, in order: input, prediction, probability (where there is one),
        whatever else the objective tells, error (or None).

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
        """Compute features of samples. Returns (N, D) of those that can be read, their positions, and what could not be
        read."""
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
        """Go through the samples' batches once."""
        data = Data(self.spec, test=samples)
        reading = choose_reading("auto", data, samples, self.device, once=True)
        return evaluation_batches(
            data, samples, batch_size=size, reading=reading, device=self.device, channels_last=self.channels_last
        )

    def _batches(self, samples: Samples, size: int) -> Iterator[tuple[Batch, range, dict[int, str]]]:
        """Yield each batch, the positions that it was made from, and why some of them could not be read."""
        start = 0
        for batch in self._once(samples, size):
            stop = min(start + size, len(samples))
            good = set(batch.index.tolist())
            missing = [i for i in range(start, stop) if i not in good]
            yield batch, range(start, stop), dict(zip(missing, batch.skipped, strict=True))
            start = stop


@known_errors()
def load(ref: str | Path, *, backbone: Backbone | None = None) -> Model:
    """Load a trained model, ready to use. Runs no code of the checkpoint. Raises ConfigError, CheckpointError."""
    found = refs.find_checkpoint(ref)
    raw, spec = found.meta["config"], found.spec
    if backbone is None and "backbone" not in raw:
        raise CheckpointError(
            f"{clean(ref)} needs {listing(found.meta.get('needs', []))}",
            "hand it in: fmeco.load(REF, backbone=...)",
        )
    refs.check_needs(found, ref, "objectives", *(["backbones"] if backbone is None else []))
    body = backbone or choose("backbone", raw["backbone"]).build(spec=spec)
    objective: Objective = choose("objective", raw["objective"]).build(backbone=body, spec=spec)
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


def _reader(spec: DataSpec) -> Callable[[DataSpec, Sequence[str]], Samples]:
    reader: Callable[[DataSpec, Sequence[str]], Samples] | None = getattr(reader_module(spec), "read", None)
    if reader is None:
        raise ConfigError(
            f"the dataset plug-in '{spec.reader or '?'}' has no read(spec, sources): it cannot read new inputs"
        )
    return reader
