"""Stems of the transformer: what its tokens are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fmeco.core import ConfigError, DataSpec, Inputs, Tokens
from fmeco.nn.layers import by_instance


class Stem(nn.Module, ABC):
    """Inputs -> what tokens are made of (B, T, D), and what tells apart tokens that are hidden (T, D), beside positions."""

    length: int  # most tokens of a sample
    vocabulary: int = 0
    numbers: int = 0
    grid: tuple[int, int] | None = None
    embedding: nn.Embedding | None  # (vocabulary, D)
    grows = False  # ids of a checkpoint keep their meaning when there are more of them

    @abstractmethod
    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]: ...

    @abstractmethod
    def tokenize(self, inputs: Inputs) -> Tokens: ...

    def mask(self, inputs: Inputs) -> Tensor | None:
        """Which tokens (B, T) are real; None where all are."""
        return None


class Ids(Stem):
    """Ids (B, T), of which 0 is padding -> their embeddings."""

    def __init__(self, spec: DataSpec, width: int) -> None:
        super().__init__()
        self.length, self.vocabulary = spec.inputs["tokens"].shape[0], int(spec.preprocessing["ids"])
        self.embedding = nn.Embedding(self.vocabulary, width)
        self.grows = "items" in spec.preprocessing  # words of another tokenizer are others, whatever their number

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        assert self.embedding is not None
        return self.embedding(inputs["tokens"]), None

    def mask(self, inputs: Inputs) -> Tensor:
        return inputs["tokens"].ne(0)

    def tokenize(self, inputs: Inputs) -> Tokens:
        return Tokens(self.mask(inputs), ids=inputs["tokens"])


class Numbers(Stem):
    """Tokens that are P numbers each, all of them real, through a linear layer."""

    embed: nn.Linear

    @abstractmethod
    def cut(self, inputs: Inputs) -> Tensor:
        """The numbers of each token (B, T, P)."""

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        return self.embed(self.cut(inputs)), None

    def tokenize(self, inputs: Inputs) -> Tokens:
        x = self.cut(inputs)
        return Tokens(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), numbers=x)


class Patches(Numbers):
    """An image or spectrogram (B, C, H, W) -> its patches, row by row, each C * h * w numbers, through a linear layer."""

    def __init__(self, spec: DataSpec, width: int, patch: list[int]) -> None:
        super().__init__()
        self.name, one = next(iter(spec.inputs.items()))
        channels, *sides = one.shape
        if len(patch) != 2 or min(patch) < 1 or any(side % p for side, p in zip(sides, patch, strict=True)):
            raise ConfigError(f"backbone.patch: {patch} does not divide {sides[0]}x{sides[1]}, the size of the input")
        self.patch = patch
        self.grid = (sides[0] // patch[0], sides[1] // patch[1])
        self.length, self.numbers = self.grid[0] * self.grid[1], channels * patch[0] * patch[1]
        self.embed, self.embedding = nn.Linear(self.numbers, width), None

    def cut(self, inputs: Inputs) -> Tensor:
        """(B, C, H, W) -> (B, T, C * h * w)."""
        (rows, columns), (h, w) = self.grid or (0, 0), self.patch
        x = inputs[self.name].unflatten(3, (columns, w)).unflatten(2, (rows, h))  # (B, C, rows, h, columns, w)
        patches: Tensor = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return patches


class Steps(Numbers):
    """A window of a series (B, L), standardised by its own mean and deviation -> its patches, side by side, each of P
    numbers, through a linear layer. https://arxiv.org/abs/2211.14730 section 3.1"""

    def __init__(self, spec: DataSpec, width: int, patch: int | list[int]) -> None:
        super().__init__()
        context = spec.inputs["series"].shape[0]
        if not isinstance(patch, int) or patch < 1 or context % patch:
            raise ConfigError(f"backbone.patch: {patch} does not divide {context}, the steps of dataset.context")
        self.length, self.numbers = context // patch, patch
        self.embed, self.embedding = nn.Linear(patch, width), None

    def cut(self, inputs: Inputs) -> Tensor:
        """(B, L) -> (B, T, P)."""
        patches: Tensor = by_instance(inputs["series"])[0].unflatten(1, (self.length, self.numbers))
        return patches


class Columns(Stem):
    """A row of a table -> a token per column: x_j * w_j + b_j of numbers (B, F), e_j[x_j] + b_j of categories (B, K).

    https://arxiv.org/abs/2106.11959 section 3.3. The biases say which column it is, also of one that is hidden.
    """

    def __init__(self, spec: DataSpec, width: int) -> None:
        super().__init__()
        floats = spec.inputs["columns"].shape[0] if "columns" in spec.inputs else 0
        # Index 0 of each is "missing or never seen in training"; columns of categories share one numbering.
        sizes = [len(one["categories"]) + 1 for one in spec.preprocessing.get("categorical", ())]
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
