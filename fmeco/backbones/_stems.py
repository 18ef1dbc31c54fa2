"""Turn inputs into the transformer's tokens: one stem per kind of data."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fmeco.core import ConfigError, DataSpec, Inputs, Tokens
from fmeco.nn.layers import by_instance


class Stem(nn.Module, ABC):
    """Embed inputs as tokens.

    `forward` returns the tokens (B, T, D) and an identity (T, D) or None, which is added to masked tokens as well, so that
    they stay distinguishable without positions.
    length: maximum number of tokens per sample.
    vocabulary: number of ids; 0 if tokens hold numbers only.
    numbers: numbers per token; 0 if tokens hold ids only.
    grid: (rows, columns) of the tokens, if they form a grid.
    embedding: embeddings of the ids (vocabulary, D), if there are ids.
    grows: whether ids keep their meaning when a dataset adds more of them.
    """

    length: int
    vocabulary: int = 0
    numbers: int = 0
    grid: tuple[int, int] | None = None
    embedding: nn.Embedding | None
    grows = False

    @abstractmethod
    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]: ...

    @abstractmethod
    def tokenize(self, inputs: Inputs) -> Tokens: ...

    def mask(self, inputs: Inputs) -> Tensor | None:
        """Return a bool mask (B, T) of the real tokens; None if all are real."""
        return None


class Ids(Stem):
    """Embed ids (B, T), of which 0 is padding."""

    def __init__(self, spec: DataSpec, width: int) -> None:
        super().__init__()
        self.length, self.vocabulary = spec.seen["tokens"].shape[0], int(spec.preprocessing["ids"])
        self.embedding = nn.Embedding(self.vocabulary, width)
        self.grows = "items" in spec.preprocessing  # not for text: another tokenizer gives every id another meaning

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        assert self.embedding is not None
        return self.embedding(inputs["tokens"]), None

    def mask(self, inputs: Inputs) -> Tensor:
        return inputs["tokens"].ne(0)

    def tokenize(self, inputs: Inputs) -> Tokens:
        return Tokens(self.mask(inputs), ids=inputs["tokens"])


class Numbers(Stem):
    """Embed tokens of P numbers each by a linear layer. Every token is real."""

    embed: nn.Linear

    @abstractmethod
    def cut(self, inputs: Inputs) -> Tensor:
        """Return the numbers of each token (B, T, P)."""

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        return self.embed(self.cut(inputs)), None

    def tokenize(self, inputs: Inputs) -> Tokens:
        x = self.cut(inputs)
        return Tokens(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), numbers=x)


class Patches(Numbers):
    """Embed the patches of an image or spectrogram (B, C, H, W), row by row, each C * h * w numbers."""

    def __init__(self, spec: DataSpec, width: int, patch: list[int]) -> None:
        super().__init__()
        self.name, image = next(iter(spec.seen.items()))
        channels, *sides = image.shape
        if len(patch) != 2 or min(patch) < 1 or any(side % p for side, p in zip(sides, patch, strict=True)):
            raise ConfigError(f"backbone.patch: {patch} does not divide {sides[0]}x{sides[1]}, the size of the input")
        self.patch = patch
        self.grid = (sides[0] // patch[0], sides[1] // patch[1])
        self.length, self.numbers = self.grid[0] * self.grid[1], channels * patch[0] * patch[1]
        self.embed, self.embedding = nn.Linear(self.numbers, width), None

    def cut(self, inputs: Inputs) -> Tensor:
        """Cut an image into patches, (B, C, H, W) -> (B, T, C * h * w)."""
        (rows, columns), (h, w) = self.grid or (0, 0), self.patch
        x = inputs[self.name].unflatten(3, (columns, w)).unflatten(2, (rows, h))  # (B, C, rows, h, columns, w)
        patches: Tensor = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return patches


class Steps(Numbers):
    """Embed the patches of a series' window (B, L), each P steps, without overlap.

    The window is standardised by its own mean and deviation. https://arxiv.org/abs/2211.14730 section 3.1
    """

    def __init__(self, spec: DataSpec, width: int, patch: int | list[int]) -> None:
        super().__init__()
        context = spec.seen["series"].shape[0]
        if not isinstance(patch, int) or patch < 1 or context % patch:
            raise ConfigError(
                f"backbone.patch: {patch} does not divide {context}, the number of steps of dataset.context"
            )
        self.length, self.numbers = context // patch, patch
        self.embed, self.embedding = nn.Linear(patch, width), None

    def cut(self, inputs: Inputs) -> Tensor:
        """Standardise a window and cut it into patches, (B, L) -> (B, T, P)."""
        patches: Tensor = by_instance(inputs["series"])[0].unflatten(1, (self.length, self.numbers))
        return patches


class Columns(Stem):
    """Embed each column of a table's row as a token: x_j * w_j + b_j for numbers (B, F), e_j[x_j] + b_j for categories (B, K).

    https://arxiv.org/abs/2106.11959 section 3.3. The bias b_j identifies the column, even if its value is masked.
    """

    def __init__(self, spec: DataSpec, width: int) -> None:
        super().__init__()
        floats = spec.seen["columns"].shape[0] if "columns" in spec.seen else 0
        # Index 0 of each column is "missing or never seen in training"; all columns share one embedding table.
        sizes = [len(column["categories"]) + 1 for column in spec.preprocessing.get("categorical", ())]
        self.length, self.numbers, self.vocabulary = floats + len(sizes), min(floats, 1), sum(sizes)
        self.weight = nn.Parameter(torch.zeros(floats, width)) if floats else None
        self.embedding = nn.Embedding(self.vocabulary, width) if sizes else None
        self.column = nn.Parameter(torch.zeros(self.length, width))
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        self.register_buffer("starts", starts, persistent=False)

    starts: Tensor

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        parts = []
        if self.weight is not None:
            parts.append(inputs["columns"].unsqueeze(-1) * self.weight)
        if self.embedding is not None:
            parts.append(self.embedding(inputs["categories"] + self.starts))
        return torch.cat(parts, 1), self.column

    def tokenize(self, inputs: Inputs) -> Tokens:
        numbers = inputs["columns"].unsqueeze(-1) if self.weight is not None else None  # (B, F, 1)
        ids = inputs["categories"] + self.starts if self.embedding is not None else None  # (B, K)
        rows = len(next(iter(inputs.values())))
        return Tokens(torch.ones(rows, self.length, dtype=torch.bool, device=self.column.device), numbers, ids)
