"""Speech recognition, character by character: connectionist temporal classification (CTC) of recordings with transcripts.

https://doi.org/10.1145/1143844.1143891 (Graves et al. 2006). Each time step outputs a character or a blank. The text of a
path over the steps is what remains after merging repeats and removing blanks, and the probability of a text is the sum
over all of its paths. Transcripts need no alignment in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import (
    SHOWN,
    Backbone,
    Batch,
    Cases,
    ConfigError,
    DataError,
    DataSpec,
    Doc,
    Features,
    Ge,
    Loss,
    Lt,
    Objective,
    Part,
    clean,
    standardize,
)
from fmeco.nn.layers import Head, trial

DEFAULT_FOR = ("text",)  # kinds of targets

BLANK = 0  # the first output; characters follow, in the order of the target's classes


def build(
    backbone: Backbone,
    spec: DataSpec,
    *,
    target: Annotated[str, Doc("name of the dataset's target to learn")] = "label",
    beam: Annotated[
        int, Doc("beam width of the prefix search for the most likely text; 1 = the most likely path"), Ge(1)
    ] = 1,
    dropout: Annotated[float, Doc("dropout before the head"), Ge(0), Lt(1)] = 0.0,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "text":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(
            f"objective ctc needs a text target '{target}': {kind}", "dataset.task: text reads transcripts"
        )
    return CTC(backbone, described.classes, target, width(backbone, spec), beam, dropout)


def width(backbone: Backbone, spec: DataSpec) -> int:
    """Find the width D of a time step by running the backbone on a sample of zeros.

    Raises ConfigError for a backbone that returns no time steps.
    """
    zeros = {name: torch.zeros(1, *x.shape, dtype=getattr(torch, x.dtype)) for name, x in spec.seen.items()}
    with trial(backbone):
        features = backbone.mapped(standardize(zeros, spec))
    if features.tokens is None or (features.grid is None and features.mask is None):
        raise ConfigError(
            f"objective ctc needs features per time step, and {type(backbone).__name__} returns one vector per sample here",
            "use cnn, a resnet of torchvision, transformer with backbone.patch: [mels, frames], or a speech encoder of hf/",
        )
    return features.tokens.shape[-1]


def over_time(features: Features) -> tuple[Tensor, Tensor]:
    """Turn features with tokens into time steps (B, T, D), and count the real steps of each sample (B,).

    In a grid (h, w) time runs along w; the frequencies along h are averaged.
    """
    x = features.tokens
    assert x is not None
    if features.grid is not None:
        x = x.unflatten(1, features.grid).mean(1)
    elif features.mask is not None:
        return x, features.mask.sum(1)
    return x, torch.full((len(x),), x.shape[1], device=x.device)


class CTC(Objective):
    directions: Mapping[str, Literal["max", "min"]] = {"wer": "min", "cer": "min", "exact": "max"}

    def __init__(
        self, backbone: Backbone, alphabet: tuple[str, ...], target: str, width: int, beam: int, dropout: float
    ) -> None:
        super().__init__()
        self.backbone, self.alphabet, self.target, self.beam = backbone, alphabet, target, beam
        self.head = Head(width, 1 + len(alphabet), dropout)

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities (B, T, 1 + C) of the blank and each character, and the number of real steps (B,)."""
        x, steps = over_time(self.backbone.mapped(batch.views[0]))
        return self.head(x).float().log_softmax(-1), steps

    def loss(self, batch: Batch) -> Loss:
        """Compute -log p(transcript | recording), summed over samples. The count is the number of characters.

        Raises DataError for a transcript that needs more time steps than the recording has.
        """
        scores, steps = self.scores(batch)
        texts = [codes + 1 for codes in batch.target[self.target]]
        for text, most in zip(texts, steps.tolist(), strict=True):
            self._check_length(text, most)
        return Loss(negative_log_likelihood(scores, steps, texts).sum(), float(sum(map(len, texts))))

    def _check_length(self, outputs: Tensor, steps: int) -> None:
        """Raise DataError for a text that has no path: each character needs a step, and a blank between two equal ones."""
        repeats = int((outputs[1:] == outputs[:-1]).sum())
        if len(outputs) + repeats > steps:
            text = self._text(outputs.tolist())
            raise DataError(
                f"the transcript '{clean(text, 60)}' has {len(outputs)} characters, {repeats} of them repeated at once, "
                f"which need {len(outputs) + repeats} time steps; the backbone returns {steps}",
                "for more steps per second of a spectrogram: a narrower backbone.patch, a backbone with less downsampling, or "
                "a smaller dataset.hop",
                "a larger dataset.seconds helps only if the recordings are longer than it is now",
            )

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        wanted = [self._text((codes + 1).tolist()) for codes in batch.target[self.target]]
        scores, steps = self.scores(batch)
        recognised = [self._text(outputs) for outputs in self.read(scores, steps)]
        pairs = list(zip(recognised, wanted, strict=True))
        counted = {
            "edits": [distance(a, b) for a, b in pairs],
            "characters": [len(text) for text in wanted],
            "word_edits": [distance(a.split(), b.split()) for a, b in pairs],
            "words": [len(text.split()) for text in wanted],
        }
        return {name: torch.tensor(values) for name, values in counted.items()}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Compute error rates over the whole split.

        wer: word edits from the recognised texts to the transcripts, divided by the words of the transcripts.
        cer: the same for characters.
        exact: share of samples without an edit.
        """
        return {
            "wer": int(rows["word_edits"].sum()) / int(rows["words"].sum()),
            "cer": int(rows["edits"].sum()) / int(rows["characters"].sum()),
            "exact": float((rows["edits"] == 0).double().mean()),
        }

    def page(self, rows: dict[str, Tensor]) -> list[Part]:
        share = rows["edits"].double() / rows["characters"].clamp_min(1)
        worst = [i for i in share.argsort(descending=True, stable=True)[:SHOWN].tolist() if share[i]]
        captions = [f"{int(rows['edits'][i])} edits to {int(rows['characters'][i])} characters" for i in worst]
        return [Cases("Worst transcripts", tuple(worst), tuple(captions))] if worst else []

    def read(self, scores: Tensor, steps: Tensor) -> list[list[int]]:
        """Decode the text of each sample, as outputs: characters, counted from 1."""
        real = [x[:count].double() for x, count in zip(scores.cpu(), steps.tolist(), strict=True)]
        return [greedy(x) if self.beam == 1 else prefix_search(x, self.beam) for x in real]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Recognise the text of each sample.

        said: outputs (B, T), padded with blanks.
        probability: of that text, summed over all its paths (B,).
        """
        scores, steps = self.scores(batch)
        texts = [torch.tensor(outputs, dtype=torch.int64) for outputs in self.read(scores, steps)]
        padded = torch.stack([F.pad(text, (0, scores.shape[1] - len(text)), value=BLANK) for text in texts])
        return {"said": padded, "probability": (-negative_log_likelihood(scores, steps, texts)).exp()}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        return [
            {"prediction": self._text(text), "probability": probability}
            for text, probability in zip(outputs["said"].tolist(), outputs["probability"].tolist(), strict=True)
        ]

    def _text(self, outputs: Sequence[int]) -> str:
        return "".join(self.alphabet[output - 1] for output in outputs if output != BLANK)

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        classes = ("blank", *self.alphabet)  # "blank" cannot clash with a character: it is longer
        return {"head.weight": classes, "head.bias": classes}


def negative_log_likelihood(scores: Tensor, steps: Tensor, texts: Sequence[Tensor]) -> Tensor:
    """Compute -log p(text) (B,), summed over all paths of the text; inf for a text without a path. Equations 6 to 8.

    scores: log-probabilities (B, T, 1 + C).
    steps: number of real steps (B,).
    texts: outputs (L_i,) of each sample.
    """
    lengths = torch.tensor([len(text) for text in texts], device=scores.device)
    together = torch.cat(list(texts)).to(scores.device)
    return F.ctc_loss(scores.transpose(0, 1), together, steps, lengths, BLANK, reduction="none")


# ---------------------------------------------------------------- decoding


def greedy(scores: Tensor) -> list[int]:
    """Decode the text of the most likely path from log-probabilities (T, 1 + C): section 3.2, best path decoding."""
    path: Tensor = scores.argmax(1).unique_consecutive()
    return path[path != BLANK].tolist()


def prefix_search(scores: Tensor, beam: int) -> list[int]:
    """Search for the most likely text in log-probabilities (T, 1 + C), float64, keeping `beam` prefixes after each step.

    https://arxiv.org/abs/1408.2873 algorithm 1, without a language model. Each prefix has two probabilities: of its paths
    that end in a blank, and of those that do not. A repeated character extends a prefix only after a blank.
    """
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}
    before = kept  # all prefixes of the previous step, including those that were dropped
    for step in scores.exp().tolist():
        now: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blank, own) in kept.items():
            last = prefix[-1] if prefix else BLANK
            b, n = now.get(prefix, (0.0, 0.0))
            now[prefix] = b + step[BLANK] * (blank + own), n + (step[last] * own if prefix else 0.0)
            for character in range(1, len(step)):
                longer = (*prefix, character)
                b, n = now.get(longer, (0.0, 0.0))
                n += step[character] * (blank if character == last else blank + own)
                if longer not in kept and longer in before:
                    was_blank, was_own = before[longer]
                    b, n = b + step[BLANK] * (was_blank + was_own), n + step[character] * was_own
                now[longer] = b, n
        best = sorted(now, key=lambda prefix: -sum(now[prefix]))[:beam]
        size = sum(
            now[best[0]]
        )  # relative to the best prefix: absolute probabilities of a long recording underflow to 0
        before = {prefix: (b / size, n / size) for prefix, (b, n) in now.items()}
        kept = {prefix: before[prefix] for prefix in best}
    return list(next(iter(kept)))


def distance(read: Sequence[str], wanted: Sequence[str]) -> int:
    """Count the fewest insertions, deletions and substitutions between two sequences (Levenshtein distance)."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(read, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]
