"""Losses and metrics against slow references, scikit-learn and the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from fmeco.config.check import choose
from fmeco.core import Batch, DataSpec, InputSpec, Target, mix
from fmeco.errors import ConfigError
from fmeco.nn.metrics import average_precision, roc_auc
from fmeco.nn.mixing import mix_batch
from fmeco.objectives.classification import cross_entropy

X = InputSpec((6,))


def objective(name: str, target: Target, **options: Any) -> Any:
    spec = DataSpec("table", {"columns": X}, targets={"label": target}, sizes={"train": 100})
    body = choose("backbone", {"name": "mlp", "hidden": [8]})
    choice = choose("objective", {"name": name, **options})
    torch.manual_seed(0)
    made = choice.plugin.build(
        {"backbone": body.plugin.build({"spec": spec}, body.options), "spec": spec}, choice.options
    )
    torch.nn.init.normal_(made.head.weight)
    return made.double()


def batch(label: torch.Tensor) -> Batch:
    x = torch.randn(len(label), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(
        [{"columns": x}], {"label": label}, torch.arange(len(label)), mix(1, torch.arange(len(label))).unsqueeze(0)
    )


def test_cross_entropy_is_the_formula() -> None:
    logits, label = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2, 0, 3])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    total = 0.0
    for row, y in zip(
        logits.tolist(), label.tolist(), strict=True
    ):  # Szegedy et al. 2015, section 7: q = (1-e) onehot + e/K
        z = math.log(sum(math.exp(v) for v in row))
        for k, v in enumerate(row):
            q = (0.9 if k == y else 0.0) + 0.1 / 4
            total += float(weights[k]) * q * (z - v)
    got, count = cross_entropy(logits, label, 0.1, weights)
    assert float(got) == pytest.approx(total)
    assert float(count) == pytest.approx(float(weights[label].sum()))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("mse", lambda e: e * e),
        ("mae", abs),
        ("huber", lambda e: 0.5 * e * e if abs(e) < 0.7 else 0.7 * (abs(e) - 0.35)),
    ],
)
def test_regression_losses_are_their_formulas_in_standard_units(kind: str, formula: Any) -> None:
    made = objective("regression", Target("number", mean=10.0, std=4.0), loss=kind, delta=0.7)
    one = batch(torch.tensor([3.0, 12.0, 30.0, 9.0], dtype=torch.float64))
    loss = made(one, "loss")
    got = made.head(made.backbone(one.views[0]).vector)[:, 0].tolist()
    want = sum(formula(g - (v - 10) / 4) for g, v in zip(got, one.target["label"].tolist(), strict=True))
    assert float(loss.sum.detach()) == pytest.approx(want, rel=1e-5)
    assert loss.count == 4


def test_multilabel_loss_is_the_formula() -> None:
    made = objective("multilabel", Target("multilabel", ("a", "b"), (20, 50)), pos_weight="balanced")
    one = batch(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    p = torch.sigmoid(made.head(made.backbone(one.views[0]).vector)).tolist()
    want = 0.0
    for row, label in zip(p, one.target["label"].tolist(), strict=True):
        for c, weight in enumerate((80 / 20, 50 / 50)):
            want -= weight * label[c] * math.log(row[c]) + (1 - label[c]) * math.log(1 - row[c])
    assert float(made(one, "loss").sum.detach()) == pytest.approx(want / 2, rel=1e-5)


def test_multi_task_adds_the_losses_of_what_is_labelled() -> None:
    targets = {
        "kind": Target("class", ("a", "b", "c"), (20, 30, 50), missing=1),
        "size": Target("number", mean=10.0, std=4.0, missing=2),
    }
    spec = DataSpec("table", {"columns": InputSpec((5,))}, targets, {"categorical": []}, sizes={"train": 100})
    body = choose("backbone", {"name": "mlp", "hidden": [6]})
    chosen = choose(
        "objective",
        {"name": "multi_task", "tasks": {"kind": "classification", "size": "regression"}, "weights": {"size": 0.3}},
    )
    torch.manual_seed(0)
    made = chosen.plugin.build(
        {"backbone": body.plugin.build({"spec": spec}, body.options), "spec": spec}, chosen.options
    )
    for head in made.parts.values():
        torch.nn.init.normal_(head.head.weight)
    made.eval()
    kind, size = torch.tensor([2, -1, 0, 1]), torch.tensor([3.0, 12.0, math.nan, math.nan])
    one = Batch(
        [{"columns": torch.randn(4, 5)}], {"kind": kind, "size": size}, torch.arange(4), torch.zeros(1, 4).long()
    )
    vectors = made.backbone(one.views[0]).vector.detach()
    logits = made.parts["of_kind"].head(vectors).log_softmax(1).tolist()
    numbers = made.parts["of_size"].head(vectors)[:, 0].tolist()
    want = -sum(logits[i][kind[i]] for i in (0, 2, 3)) + 0.3 * sum(
        (numbers[i] - (size[i] - 10) / 4) ** 2 for i in (0, 1)
    )
    loss = made(one, "loss")
    assert float(loss.sum.detach()) == pytest.approx(float(want), rel=1e-5)
    assert loss.count == 4
    halves = [made(half, "loss").sum.detach() for half in one.split([2, 2])]
    assert float(sum(halves)) == pytest.approx(float(loss.sum.detach()), rel=1e-5), "micro-batches learn the same"
    with torch.inference_mode():
        metrics = made.metrics(made(one, "rows"))
    right = [max(range(3), key=logits[i].__getitem__) == kind[i] for i in (0, 2, 3)]
    assert metrics["kind_accuracy"] == pytest.approx(sum(right) / 3)
    assert metrics["score"] == pytest.approx((metrics["kind_accuracy"] + metrics["size_r2"]) / 2)
    with pytest.raises(ConfigError, match="needs more than the backbone's vectors"):
        mixed = choose("objective", {"name": "multi_task", "tasks": {"kind": {"name": "classification", "mixup": 0.2}}})
        mixed.plugin.build({"backbone": made.backbone, "spec": spec}, mixed.options)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_classification_metrics_equal_scikit_learns(classes: int) -> None:
    rng = np.random.default_rng(classes)
    label = np.concatenate([np.arange(classes), rng.integers(0, classes, 200)])
    logits = rng.standard_normal((len(label), classes)).round(1) + 1.5 * np.eye(classes)[label]  # with ties
    made = objective("classification", Target("class", tuple(f"c{c}" for c in range(classes))))
    got = made.metrics({"logits": torch.from_numpy(logits), "label": torch.from_numpy(label)})
    probability, predicted = torch.from_numpy(logits).softmax(1).numpy(), logits.argmax(1)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(label, predicted))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(label, predicted, average="macro"))
    assert got["loss"] == pytest.approx(sk.log_loss(label, probability))
    auc = (
        sk.roc_auc_score(label, probability[:, 1])
        if classes == 2
        else sk.roc_auc_score(label, probability, multi_class="ovr")
    )
    assert got["auc"] == pytest.approx(auc)
    recalls = sk.recall_score(label, predicted, average=None)
    assert [got[f"recall/c{c}"] for c in range(classes)] == pytest.approx(list(recalls))
    if classes > 5:
        assert got["top5"] == pytest.approx(sk.top_k_accuracy_score(label, logits, k=5))


def test_ranked_metrics_and_multilabel_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    label = rng.random((300, 4)) < 0.3
    logits = (rng.standard_normal((300, 4)) + label).round(1)
    for c in range(4):
        s, y = torch.from_numpy(logits[:, c]), torch.from_numpy(label[:, c])
        assert roc_auc(s, y) == pytest.approx(sk.roc_auc_score(label[:, c], logits[:, c]))
        assert average_precision(s, y) == pytest.approx(sk.average_precision_score(label[:, c], logits[:, c]))
    made = objective("multilabel", Target("multilabel", ("a", "b", "c", "d"), (1, 1, 1, 1)))
    got = made.metrics({"logits": torch.from_numpy(logits), "label": torch.from_numpy(label).float()})
    assert got["mean_ap"] == pytest.approx(sk.average_precision_score(label, logits, average="macro"))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(label, logits >= 0, average="macro"))
    assert got["exact_match"] == pytest.approx(sk.accuracy_score(label, logits >= 0))


def test_regression_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    value, predicted = rng.standard_normal(50) * 3 + 7, rng.standard_normal(50) + 7
    made = objective("regression", Target("number"))
    got = made.metrics({"value": torch.from_numpy(value), "predicted": torch.from_numpy(predicted)})
    assert got["rmse"] == pytest.approx(sk.root_mean_squared_error(value, predicted))
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(value, predicted))
    assert got["r2"] == pytest.approx(sk.r2_score(value, predicted))


def test_mixup_and_cutmix_keep_the_share_that_they_report() -> None:
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()
    seen = set()
    for seed in range(20):
        keys = mix(seed, torch.arange(4))
        mixed, partner, lam = mix_batch({"image": x}, keys, 0.4, 1.0)
        assert 0 <= lam <= 1
        assert partner.tolist() == [3, 0, 1, 2]
        want = lam * x.mean((1, 2, 3)) + (1 - lam) * x[partner].mean((1, 2, 3))
        torch.testing.assert_close(mixed["image"].mean((1, 2, 3)), want, atol=1e-5, rtol=1e-5)
        again = mix_batch({"image": x}, keys, 0.4, 1.0)
        assert torch.equal(again[0]["image"], mixed["image"])
        seen.add(len(mixed["image"][1].unique()))
    assert len(seen) > 1, "both methods were drawn"


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    """Weighted classes make the count differ from the number of samples, and the last part is short."""
    import fmeco as api
    from fmeco.checkpoints import format as checkpoint
    from tests.conftest import tiny

    base = tiny(
        backbone={"name": "mlp", "hidden": [32], "batch_norm": False},
        optimizer={"name": "sgd", "lr": 0.1},
        objective={"name": "classification", "class_weights": {"0": 5.0}},
        train={"epochs": 2, "batch_size": 16},
    )
    weights = []
    for micro in (16, 5, 3):
        base["train"]["micro_batch"] = micro
        run = api.pretrain(base, out=f"run-{micro}")
        last = checkpoint.open_checkpoint((run.run / "checkpoints" / "last").resolve())
        weights.append(last.tensors("backbone")["layers.0.weight"])
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-4, atol=1e-6)
