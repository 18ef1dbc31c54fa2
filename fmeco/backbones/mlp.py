"""A multi-layer perceptron for tables and vectors; small images are flattened."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from fmeco.backbones._images import assumed as assumed
from fmeco.core import Backbone, ConfigError, DataSpec, Doc, Features, Ge, Inputs, Lt
from fmeco.nn.layers import mlp

FINETUNE_LR = 5e-4  # small networks that little was learned by: they have to change more than a published one


def build(
    spec: DataSpec,
    *,
    hidden: Annotated[list[int], Doc("width of each hidden layer")] = [256, 256],
    batch_norm: bool = True,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
    embedding: Annotated[int, Doc("width of the embedding of each categorical column"), Ge(1)] = 8,
) -> Backbone:
    if not hidden or min(hidden) < 1:
        raise ConfigError(f"backbone.hidden: expected a list of positive numbers, got {hidden}")
    if ragged := [name for name, described in spec.seen.items() if described.ragged]:
        raise ConfigError(
            f"the backbone mlp takes inputs of a fixed length, and the length of '{ragged[0]}' varies",
            "backbone: transformer takes sequences",
        )
    return MLP(spec, hidden, batch_norm, dropout, embedding)


class MLP(Backbone):
    """Concatenate all numeric inputs, flattened, and the embeddings of categories; compute pooled (B, hidden[-1])."""

    def __init__(self, spec: DataSpec, hidden: list[int], batch_norm: bool, dropout: float, embedding: int) -> None:
        super().__init__()
        self.floats = [name for name in spec.seen if name != "categories"]
        # Index 0 is "missing or never seen in training".
        sizes = [len(column["categories"]) + 1 for column in spec.preprocessing.get("categorical", ())]
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding) for size in sizes)
        width = sum(torch.Size(spec.seen[name].shape).numel() for name in self.floats) + embedding * len(sizes)
        self.layers = mlp([width, *hidden], batch_norm=batch_norm, dropout=dropout)
        self.width = hidden[-1]

    def forward(self, inputs: Inputs) -> Features:
        parts = [inputs[name].flatten(1) for name in self.floats]
        parts += [embed(inputs["categories"][:, j]) for j, embed in enumerate(self.embeddings)]
        return Features(pooled=self.layers(torch.cat(parts, 1) if len(parts) > 1 else parts[0]))  # (B, D)
