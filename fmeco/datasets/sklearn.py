"""Tables of scikit-learn: real data, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fmeco.core import Data, DataSpec, Splitting, Without
from fmeco.datasets import _numbers, _tables, _targets

MODALITY = "table"

NAMES = ("breast_cancer", "diabetes", "iris", "wine")
STARTER = {"backbone": "mlp"}


def build(
    known: DataSpec | None,
    whole: bool,
    arch: str,
    *,
    splitting: Annotated[Splitting, Without("group_split")] = Splitting(test_fraction=0.2),
) -> Data:
    from sklearn import datasets

    raw = getattr(datasets, f"load_{arch}")()
    features = [str(name) for name in raw.feature_names]
    table = {name: [repr(float(value)) for value in raw.data[:, j]] for j, name in enumerate(features)}
    kinds = getattr(raw, "target_names", None)
    labels = [repr(float(v)) for v in raw.target] if kinds is None else [str(kinds[v]) for v in raw.target]
    return _tables.build_table(
        known,
        False,
        table,
        {"label": labels},
        where=f"sklearn/{arch}",
        names=[f"{arch}:{row}" for row in range(len(labels))],
        features=features,
        layout=_targets.Layout({"label": "target"}, "number" if kinds is None else "class", classes=splitting.classes),
        rules=_numbers.Rules.of(known),
        splitting=splitting,
    )


def example(folder: Path) -> dict[str, Any]:
    """Return the keys of a small table, for the checks of plug-ins."""
    return {}
