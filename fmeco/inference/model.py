"""Load a trained model: the backbone, objective and data spec of a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import refs, transplant
from fmeco.config.arguments import checked
from fmeco.core.data import Batch, Data, DataSpec, Form, Samples
from fmeco.core.model import Backbone, Objective
from fmeco.data.loader import channels_last, evaluation_batches
from fmeco.data.reading import choose_reading
from fmeco.errors import CheckpointError, ConfigError, DataError, clean, known_errors, listing, readable
from fmeco.features import forward
from fmeco.inference.inputs import has_own_answers, read, sources_of
from fmeco.log import say


class Answered(NamedTuple):
    """Hold the decoded answer to the sample at a position, on the grid of its file; or the error that kept it from being read."""

    position: int
    input: str
    answer: dict[str, Any]
    error: str | None


class Row(NamedTuple):
    """Hold what `predict` says of an input in one row, or the error."""

    input: str
    answer: dict[str, Any]
    error: str | None


def in_columns(rows: Sequence[Row], first: Mapping[str, None]) -> list[dict[str, Any]]:
    """Give all rows the same keys: input, the answers' columns (`first` come first), error."""
    columns = {**first}
    for row in rows:
        columns |= dict.fromkeys(row.answer)
    return [{"input": row.input, **{key: row.answer.get(key) for key in columns}, "error": row.error} for row in rows]


def _mapped_back(samples: Samples, index: int, answer: dict[str, Any]) -> dict[str, Any]:
    """Map what lies on the image to the sample's file."""
    on_grid = {form: answer[form] for form in get_args(Form) if isinstance(answer.get(form), Tensor)}
    return {**answer, **{form: samples.back(index, form, x) for form, x in on_grid.items()}}


@dataclass
class Model:
    """Hold a trained model with the spec of its inputs. `fmeco.load(REF)` returns one.

    checkpoint: that it was loaded from.
    spec: of its inputs and targets.
    objective: backbone and heads, in evaluation mode.
    device, precision, channels_last: how batches are computed.
    top, probabilities: as for `predict`.
    """

    checkpoint: checkpoint.Checkpoint
    spec: DataSpec
    objective: Objective
    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False
    top: int = 0
    probabilities: bool = False

    def predict(
        self, inputs: Any, *, batch_size: int = 64, top: int = 0, probabilities: bool = False
    ) -> list[dict[str, Any]]:
        """Predict each input.

        inputs: a path or several: files, folders of files, or tables, whose rows count one by one. Also texts, dicts, a
            DataFrame or arrays, where they fit the model. All are preprocessed as in training.
        top: add the most probable classes, as class_1 and probability_1, class_2 and probability_2, ...
        probabilities: add the probability of every class, as probability/NAME.

        Returns one dict per input, in order: input, prediction, probability (if there is one), further answers of the
        objective, and error (None if there is none). Raises ConfigError for an input of another kind, and for `top` or
        `probabilities` if answers are not classes.
        """
        model = self.detailed(top, probabilities)
        samples = model.read(inputs)
        rows = [row for found in model.answers(samples, batch_size) for row in model.rows(samples, found)]
        return in_columns(rows, self.columns(samples))

    def detailed(self, top: int, probabilities: bool) -> Model:
        """Return this model with more columns in its answers, as `predict` says. Raises ConfigError as it does."""
        classless = type(self.objective).class_probabilities is Objective.class_probabilities
        if (top or probabilities) and classless:
            raise ConfigError(
                f"{'top' if top else 'probabilities'}: answers of this model are not classes with probabilities"
            )
        return dataclasses.replace(self, top=top, probabilities=probabilities)

    def columns(self, samples: Samples) -> dict[str, None]:
        """Return the columns that `predict` has for these samples in any case."""
        return {} if has_own_answers(samples) else {"prediction": None, "probability": None}

    def answers(self, samples: Samples, batch_size: int = 64) -> Iterator[Answered]:
        """Predict samples, and yield each answer as soon as its batch is computed."""
        with tqdm(total=len(samples), unit="input", disable=None, dynamic_ncols=True, leave=False, delay=2) as bar:
            for batch, positions, bad in self._batches(samples, batch_size):
                decoded = iter(self._decoded(batch) if len(batch) else [])
                for i in positions:
                    answer = {} if i in bad else _mapped_back(samples, i, next(decoded))
                    yield Answered(i, readable(samples.name(i)), answer, bad.get(i))
                bar.update(len(positions))

    def _decoded(self, batch: Batch) -> list[dict[str, Any]]:
        """Answer for the samples of a batch."""
        outputs = forward.forward(self.objective, batch, "predict", self.device, self.precision)
        answers = self.objective.decode(outputs)
        if (self.top or self.probabilities) and (found := self.objective.class_probabilities(outputs)) is not None:
            names, chances = found
            ordered = chances.sort(stable=True, dim=1, descending=True)
            for at, answer in enumerate(answers):
                for place in range(min(self.top, len(names))):
                    answer[f"class_{place + 1}"] = names[int(ordered.indices[at, place])]
                    answer[f"probability_{place + 1}"] = float(ordered.values[at, place])
                if self.probabilities:
                    answer |= zip((f"probability/{name}" for name in names), chances[at].tolist(), strict=True)
        return answers

    def rows(self, samples: Samples, found: Answered) -> list[Row]:
        """Turn an answer into rows of `predict`."""
        if found.error is not None:
            return [Row(found.input, {}, found.error)]
        told = [row for one in self.objective.told(found.answer) for row in samples.answers(found.position, one)]
        return [Row(found.input, row, None) for row in told]

    def embed(self, inputs: Any, *, batch_size: int = 64) -> Tensor:
        """Compute the features (N, D) of inputs, in order.

        inputs: as for `predict`.

        Raises DataError for an input that cannot be read, and ConfigError for one of another kind.
        """
        features, _, skipped = self.features(self.read(inputs), batch_size=batch_size)
        if skipped:
            raise DataError(skipped[0], "`predict` gives the error of each input")
        return features

    def read(self, inputs: Any) -> Samples:
        """Read inputs, as for `predict`, preprocessed as in training. Reports what there is to say about them."""
        samples = read(self.spec, sources_of(inputs, self.spec))
        for note in samples.notes:
            say(note)
        return samples

    def features(self, samples: Samples, *, batch_size: int = 64) -> tuple[Tensor, list[int], list[str]]:
        """Compute the features (N, D) of the samples that can be read.

        Returns them, their positions in `samples`, and a message for each sample that cannot be read.
        """
        batches = batches_once(self.spec, samples, batch_size, self.device, self.channels_last)
        return vectors_of(self.objective, batches, self.device, self.precision)

    def _batches(self, samples: Samples, size: int) -> Iterator[tuple[Batch, range, dict[int, str]]]:
        """Yield each batch, the positions that it covers, and the error of each of these that cannot be read."""
        start, size = 0, 1 if self.spec.windows else size
        for batch in batches_once(self.spec, samples, size, self.device, self.channels_last, in_order=True):
            stop = min(start + size, len(samples))
            good = set(batch.index.tolist())
            missing = [i for i in range(start, stop) if i not in good]
            yield batch, range(start, stop), dict(zip(missing, batch.skipped, strict=True))
            start = stop


def batches_once(
    spec: DataSpec,
    samples: Samples,
    size: int,
    device: torch.device,
    use_channels_last: bool,
    *,
    in_order: bool = False,
) -> Iterator[Batch]:
    """Iterate over samples once, in batches. in_order: as for `evaluation_batches`."""
    data = Data(spec, test=samples)
    reading = choose_reading("auto", data, samples, device, once=True)
    return evaluation_batches(
        data,
        samples,
        batch_size=size,
        reading=reading,
        device=device,
        channels_last=use_channels_last,
        in_order=in_order,
    )


def vectors_of(
    objective: Objective, batches: Iterator[Batch], device: torch.device, precision: str
) -> tuple[Tensor, list[int], list[str]]:
    """Compute the features (N, D) of the samples that can be read. Returns them as `Model.features` does."""
    vectors: list[Tensor] = []
    positions: list[int] = []
    skipped: list[str] = []
    for batch in batches:
        skipped += batch.skipped
        if len(batch):
            vectors.append(forward.forward(objective, batch, "vector", device, precision)["vector"])
            positions += batch.index.tolist()
    if not vectors:
        return torch.zeros(0, objective.product.width), [], skipped
    order = torch.tensor(positions).argsort(stable=True)
    return torch.cat(vectors)[order], sorted(positions), skipped


@known_errors()
@checked
def load(ref: str | Path, *, backbone: Backbone | None = None, overrides: Sequence[str] = ()) -> Model:
    """Load a trained model, ready to use. Runs no code from the checkpoint.

    ref: a run or a checkpoint.
    backbone: your own object, for a checkpoint that was trained with one.
    overrides: keys of its objective that say how it answers, such as ["objective.score=0.5"].

    Raises ConfigError, CheckpointError.
    """
    saved = refs.find_checkpoint(ref)
    config = saved.meta["config"]
    if backbone is None and "backbone" not in config:
        raise CheckpointError(
            f"{clean(ref)} needs {listing(saved.meta['needs'])}",
            "pass it: fmeco.load(REF, backbone=...)",
        )
    refs.check_needs(saved, ref, "objectives", *(["backbones"] if backbone is None else []))
    spec, answering = refs.spec_of(saved), refs.objective_of(saved, overrides)
    with refs.rebuilding(saved):
        network = backbone or refs.section_of(saved, "backbone").build(spec=spec)
        objective: Objective = answering.build(backbone=network, spec=spec)
    transplant.load_objective(objective, saved)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective.to(device).eval()
    # Use the precision that its metrics were measured with, if this device supports it.
    precision, use_channels_last = str(saved.meta["precision"]), channels_last(config["train"]["channels_last"], spec)
    if precision == "fp16" and device.type == "cpu":
        precision = "fp32"
    if use_channels_last:
        objective.to(memory_format=torch.channels_last)
    return Model(saved, spec, objective, device, precision, use_channels_last)
