"""What was said, character by character: connectionist temporal classification of recordings with transcripts.

https://doi.org/10.1145/1143844.1143891 (Graves et al. 2006). Each step of time gives a character or a blank; a path over the
steps says the text that is left when repeats are merged and blanks removed, and a text is as likely as all its paths are
together. No one has to say when a character was spoken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fmeco.core import (
    Backbone,
    Batch,
    ConfigError,
    DataError,
    DataSpec,
    Doc,
    Features,
    Ge,
    Loss,
    Lt,
    Objective,
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
    target: Annotated[str, Doc("which target of the dataset")] = "label",
    beam: Annotated[
        int, Doc("texts that are followed at once to find the likeliest; 1 = the likeliest path"), Ge(1)
    ] = 1,
    dropout: Annotated[float, Doc("before the head"), Ge(0), Lt(1)] = 0.0,
) -> Objective:
    described = spec.targets.get(target)
    if described is None or described.kind != "text":
        kind = "no such target" if described is None else f"it is of kind {described.kind}"
        raise ConfigError(
            f"objective ctc needs a text target '{target}': {kind}", "dataset.task: text reads transcripts"
        )
    return CTC(backbone, described.classes, target, width(backbone, spec), beam, dropout)


def width(backbone: Backbone, spec: DataSpec) -> int:
    """D of a step of time, seen on a sample of zeros. Raises ConfigError for a backbone that keeps no time."""
    zeros = {name: torch.zeros(1, *one.shape, dtype=getattr(torch, one.dtype)) for name, one in spec.inputs.items()}
    with trial(backbone):
        found = backbone.mapped(standardize(zeros, spec))
    if found.tokens is None or (found.grid is None and found.mask is None):
        raise ConfigError(
            f"objective ctc needs a backbone that keeps time, and {type(backbone).__name__} gives one vector per sample here",
            "cnn, resnets of torchvision, transformer with backbone.patch: [mels, frames], or hf/ encoders of waveforms",
        )
    return found.tokens.shape[-1]


def over_time(features: Features) -> tuple[Tensor, Tensor]:
    """Features with tokens -> steps of time (B, T, D), and how many of them are real (B,). Of a grid (h, w) time runs along
    w; frequencies are averaged."""
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
        """Log-probabilities (B, T, 1 + C) of the blank and each character, and the real steps of each sample (B,)."""
        x, steps = over_time(self.backbone.mapped(batch.views[0]))
        return self.head(x).float().log_softmax(-1), steps

    def loss(self, batch: Batch) -> Loss:
        """-log p(transcript | recording), summed over samples; counted in characters."""
        scores, steps = self.scores(batch)
        said = [one + 1 for one in batch.target[self.target]]
        for one, most in zip(said, steps.tolist(), strict=True):
            self._fits(one, most)
        return Loss(negative_log_likelihood(scores, steps, said).sum(), float(sum(map(len, said))))

    def _fits(self, said: Tensor, steps: int) -> None:
        """Raises DataError for a transcript that no path can say: a character needs a step, a repeated one also a blank."""
        repeats = int((said[1:] == said[:-1]).sum())
        if len(said) + repeats > steps:
            text = self._text(said.tolist())
            raise DataError(
                f"the transcript '{clean(text, 60)}' has {len(said)} characters, {repeats} of them repeated at once, which "
                f"need {len(said) + repeats} steps of time; the backbone gives {steps}",
                "finer steps, where the input is a spectrogram: a narrower backbone.patch, a backbone that halves less often, or a "
                "smaller dataset.hop",
                "a larger dataset.seconds gives more of them only where the recordings are longer, too",
            )

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        wanted = [self._text((one + 1).tolist()) for one in batch.target[self.target]]
        scores, steps = self.scores(batch)
        found = [self._text(one) for one in self.read(scores, steps)]
        pairs = list(zip(found, wanted, strict=True))
        counted = {
            "edits": [distance(a, b) for a, b in pairs],
            "characters": [len(text) for text in wanted],
            "word_edits": [distance(a.split(), b.split()) for a, b in pairs],
            "words": [len(text.split()) for text in wanted],
        }
        return {name: torch.tensor(values) for name, values in counted.items()}

    def metrics(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Edits that make the text of what was heard into the transcript, over what the transcripts have, of the whole
        split; and the share of transcripts without one."""
        return {
            "wer": int(rows["word_edits"].sum()) / int(rows["words"].sum()),
            "cer": int(rows["edits"].sum()) / int(rows["characters"].sum()),
            "exact": float((rows["edits"] == 0).double().mean()),
        }

    def read(self, scores: Tensor, steps: Tensor) -> list[list[int]]:
        """What each sample says, as outputs: characters from 1."""
        each = [one[:count].double() for one, count in zip(scores.cpu(), steps.tolist(), strict=True)]
        return [greedy(one) if self.beam == 1 else prefix_search(one, self.beam) for one in each]

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """said: outputs (B, T), filled up with blanks. probability: of that text, over all its paths (B,)."""
        scores, steps = self.scores(batch)
        said = [torch.tensor(one, dtype=torch.int64) for one in self.read(scores, steps)]
        filled = torch.stack([F.pad(one, (0, scores.shape[1] - len(one)), value=BLANK) for one in said])
        return {"said": filled, "probability": (-negative_log_likelihood(scores, steps, said)).exp()}

    def decode(self, outputs: dict[str, Tensor]) -> list[dict[str, str | float]]:
        return [
            {"prediction": self._text(said), "probability": probability}
            for said, probability in zip(outputs["said"].tolist(), outputs["probability"].tolist(), strict=True)
        ]

    def _text(self, outputs: Sequence[int]) -> str:
        return "".join(self.alphabet[one - 1] for one in outputs if one != BLANK)

    def class_rows(self) -> Mapping[str, tuple[str, ...]]:
        classes = ("blank", *self.alphabet)  # longer than a character, and so no other's name
        return {"head.weight": classes, "head.bias": classes}


def negative_log_likelihood(scores: Tensor, steps: Tensor, said: Sequence[Tensor]) -> Tensor:
    """-log p(text) (B,), over all its paths, of log-probabilities (B, T, 1 + C) and outputs (L_i,). Equations 6 to 8; inf
    where a text has no path."""
    lengths = torch.tensor([len(one) for one in said], device=scores.device)
    together = torch.cat(list(said)).to(scores.device)
    return F.ctc_loss(scores.transpose(0, 1), together, steps, lengths, BLANK, reduction="none")


# ---------------------------------------------------------------- reading


def greedy(scores: Tensor) -> list[int]:
    """The text of the likeliest path (section 3.2, best path decoding), of log-probabilities (T, 1 + C)."""
    path: Tensor = scores.argmax(1).unique_consecutive()
    return path[path != BLANK].tolist()


def prefix_search(scores: Tensor, beam: int) -> list[int]:
    """The likeliest text that a search over prefixes finds, of log-probabilities (T, 1 + C) in float64.

    https://arxiv.org/abs/1408.2873 algorithm 1, without a language model. A prefix has the probabilities of its paths that
    end in a blank and of those that do not, as those alone go on with the same character; after each step `beam` stay.
    """
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}
    before = kept  # the last step's prefixes, those that did not stay among them
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
        size = sum(now[best[0]])  # probabilities relative to the best: a long recording's own would all be 0
        before = {prefix: (b / size, n / size) for prefix, (b, n) in now.items()}
        kept = {prefix: before[prefix] for prefix in best}
    return list(next(iter(kept)))


def distance(found: Sequence[str], wanted: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that make one of the other (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]
