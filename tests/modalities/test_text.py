"""Language: ragged batches, the transformer, the objectives without labels, and texts from files to predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco.backbones.transformer import rotate, rotations
from fmeco.checkpoints import format as checkpoint
from fmeco.config.check import choose
from fmeco.core import (
    BLANK,
    HIDDEN,
    Augment,
    Batch,
    ConfigError,
    Data,
    DataSpec,
    InputSpec,
    Samples,
    View,
    fit,
    mix,
    pad,
)
from fmeco.data.loader import Loader
from fmeco.data.order import by_length, chunks, epoch_order
from fmeco.data.reading import choose_reading
from fmeco.objectives.mask import draw, errors, normalized
from fmeco.objectives.next import losses
from tests.conftest import Answer, texts, write

pytest.importorskip("tokenizers")
IDS = DataSpec("text", {"tokens": InputSpec((16,), "int64", ragged=True)}, preprocessing={"ids": 50})
BODY = {"name": "transformer", "width": 16, "depth": 2, "heads": 2, "dropout": 0.0}
Call = Callable[..., Answer]


def backbone(spec: DataSpec = IDS, **options: Any) -> Any:
    torch.manual_seed(0)
    choice = choose("backbone", {**BODY, **options})
    return choice.plugin.build({"spec": spec, "arch": None}, choice.options).double().eval()


def ids(*lengths: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return pad([torch.randint(1, 50, (n,), generator=generator) for n in lengths])


def batch(tokens: torch.Tensor) -> Batch:
    places = torch.arange(len(tokens))
    return Batch([{"tokens": tokens}], {}, places, mix(3, places)[None])


# ---------------------------------------------------------------- the transformer


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"positions": "learned"}])
def test_padding_and_company_change_nothing(options: dict[str, Any]) -> None:
    model, many = backbone(**options), ids(16, 3, 9)
    with torch.no_grad():
        features = model({"tokens": many})
        for i, n in enumerate((16, 3, 9)):
            alone = model({"tokens": many[i : i + 1, :n]})
            torch.testing.assert_close(features.tokens[i, :n], alone.tokens[0])
            torch.testing.assert_close(features.vector[i], alone.vector[0])


def test_a_causal_model_does_not_look_ahead() -> None:
    one = ids(12)
    other = one.clone()
    other[0, 7] = 1 + other[0, 7] % 49
    for causal in (True, False):
        model = backbone(causal=causal)
        with torch.no_grad():
            same = (model({"tokens": one}).tokens - model({"tokens": other}).tokens).abs().amax(-1)[0] < 1e-12
        assert same[:7].all() == causal
        assert not same[7:].any()


def test_products_of_rotated_vectors_depend_on_distance_alone() -> None:
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    angles = rotations(64, 8).double()
    a, b = (rotate(x.expand(64, 8), angles) for x in (q, k))
    products = a @ b.T  # (T, T)
    for distance in (-9, 0, 5):
        line = products.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=1e-5)
    torch.testing.assert_close(products[0, 0], q @ k)
    turned = complex(float(q[1]), float(q[5])) * complex(math.cos(3 * 10000**-0.25), math.sin(3 * 10000**-0.25))
    assert float(a[3, 1]) == pytest.approx(turned.real, abs=1e-6), "equation (34), pair 1 of 4 at position 3"


def test_what_is_hidden_is_not_seen() -> None:
    model, one = backbone(), ids(10)
    other = one.clone()
    other[0, 4] = 1 + other[0, 4] % 49
    hidden = torch.zeros_like(one, dtype=torch.bool)
    hidden[0, 4] = True
    with torch.no_grad():
        a, b = ({"tokens": x, HIDDEN: hidden, BLANK: torch.ones(16).double()} for x in (one, other))
        assert torch.equal(model(a).tokens, model(b).tokens)


def test_patches_are_the_pixels() -> None:
    spec = DataSpec("image", {"image": InputSpec((2, 4, 6))})
    x = torch.arange(48.0, dtype=torch.float64).view(1, 2, 4, 6)
    got = backbone(spec, patch=[2, 3]).tokenize({"image": x})
    assert got.numbers.shape == (1, 4, 12)
    for t, (row, column) in enumerate(((0, 0), (0, 3), (2, 0), (2, 3))):
        assert torch.equal(got.numbers[0, t], x[0, :, row : row + 2, column : column + 3].flatten())


# ---------------------------------------------------------------- losses


def test_hidden_tokens_are_real_and_as_many_as_asked_for() -> None:
    real = ids(16, 1, 5, 13) != 0
    for rate in (0.15, 0.75):
        for seed in range(20):
            keys = mix(seed, torch.arange(4))
            chosen = draw(keys, real, rate)
            assert not (chosen & ~real).any()
            assert chosen.sum(1).tolist() == [max(1, round(rate * n)) for n in (16, 1, 5, 13)]
            alone = draw(keys[2:3], real[2:3, :5], rate)
            assert torch.equal(chosen[2:3, :5], alone), "padding changes nothing"
    often = sum(draw(mix(seed, torch.arange(4)), real, 0.15)[0].long() for seed in range(2000))
    assert float((often / 2000 - 2 / 16).abs().max()) < 0.03, "every place is as likely"


def test_mask_is_its_formula() -> None:
    choice = choose("objective", {"name": "mask", "swap": False})
    made = choice.plugin.build({"backbone": backbone(), "spec": IDS}, choice.options).double().eval()
    torch.nn.init.normal_(made.bias)
    one = batch(ids(16, 5))
    chosen = draw(one.keys[0], one.views[0]["tokens"] != 0, 0.15)
    with torch.no_grad():
        loss = made(one, "loss")
        seen = {**one.views[0], HIDDEN: chosen, BLANK: made.blank}
        logits = made.backbone(seen).tokens @ made.backbone.stem.embedding.weight.T + made.bias
    want = 0.0
    for i, t in chosen.nonzero().tolist():
        row = logits[i, t].tolist()
        want += math.log(sum(math.exp(v) for v in row)) - row[int(one.views[0]["tokens"][i, t])]
    assert float(loss.sum) == pytest.approx(want, rel=1e-5)
    assert int(loss.count) == 3
    torch.manual_seed(99)
    assert torch.equal(made(one, "loss").sum, loss.sum), "nothing is drawn from torch's generator"


def test_patches_are_guessed_normalised() -> None:
    x, guess = torch.randn(3, 8, dtype=torch.float64) * 5 + 2, torch.randn(3, 8, dtype=torch.float64)
    got = errors(guess, normalized(x))
    for row, g, error in zip(x.tolist(), guess.tolist(), got.tolist(), strict=True):
        mean = sum(row) / 8
        std = math.sqrt(sum((v - mean) ** 2 for v in row) / 8 + 1e-6)
        assert error == pytest.approx(sum((a - (v - mean) / std) ** 2 for a, v in zip(g, row, strict=True)) / 8)


def test_next_is_its_formula() -> None:
    tokens = ids(7, 1, 4)
    logits = torch.randn(3, 7, 50, dtype=torch.float64)
    got, there = losses(logits, tokens, tokens != 0)
    assert there.sum(1).tolist() == [6, 0, 3]
    for i, n in enumerate((7, 1, 4)):
        for t in range(6):
            row = logits[i, t].tolist()
            want = math.log(sum(math.exp(v) for v in row)) - row[int(tokens[i, t + 1])] if t + 1 < n else 0.0
            assert float(got[i, t]) == pytest.approx(want)


# ---------------------------------------------------------------- ragged batches


class Ragged(Samples):
    in_memory = True

    def __init__(self, count: int) -> None:
        self.lengths = 1 + mix(0, torch.arange(count)).remainder(16)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"tokens": torch.full((int(self.lengths[index]),), index + 1)}

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize(("n", "size"), [(1000, 7), (997, 10), (40, 16), (3, 8)])
def test_batches_of_like_length_hold_every_sample_once(n: int, size: int) -> None:
    lengths, steps = Ragged(n).lengths, chunks(n, size)
    orders = [by_length(epoch_order(n, 5, epoch), lengths, steps, 5, epoch) for epoch in (0, 1, 0)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(orders[0], orders[2])
    if n > 900:

        def padding(order: torch.Tensor) -> float:
            return sum(float((lengths[order[a:b]].max() - lengths[order[a:b]]).sum()) for a, b in steps)

        assert padding(orders[0]) < padding(epoch_order(n, 5, 0)) / 4
        first, second = ({frozenset(order[a:b].tolist()) for a, b in steps} for order in orders[:2])
        assert not first & second, "other batches in another epoch"
        means = torch.tensor([float(lengths[orders[0][a:b]].float().mean()) for a, b in steps])
        assert float(torch.corrcoef(torch.stack([means[1:], means[:-1]]))[0, 1].abs()) < 0.3, "not short ones first"


@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_batches_resume_and_are_shared_exactly(workers: int) -> None:
    samples = Ragged(100)
    data = Data(IDS, train=samples)
    reading = choose_reading(workers, data, samples, torch.device("cpu"))

    def read(start: int, stop: int, rank: int = 0, world: int = 1) -> list[Batch]:
        loader = Loader(
            data, samples, (View(),), Augment(), 12, 12, 0, reading, torch.device("cpu"), rank=rank, world=world
        )
        return list(loader.batches(start, stop))

    whole = read(0, 20)
    assert all(one.views[0]["tokens"].shape[1] == int(samples.lengths[one.index].max()) for one in whole)
    for a, b in zip(whole[13:], read(13, 20), strict=True):
        assert torch.equal(a.views[0]["tokens"], b.views[0]["tokens"]) and torch.equal(a.keys, b.keys)
    for all_, first, second in zip(whole, read(0, 20, 0, 2), read(0, 20, 1, 2), strict=True):
        assert torch.equal(all_.index, torch.cat([first.index, second.index]))
        assert torch.equal(all_.keys, torch.cat([first.keys, second.keys], 1))


def test_fit_crops_what_is_longer_and_lets_shorter_pass() -> None:
    assert fit({"tokens": torch.arange(20)}, IDS)["tokens"].tolist() == list(range(16))
    assert len(fit({"tokens": torch.arange(3)}, IDS)["tokens"]) == 3


# ---------------------------------------------------------------- from a file to predictions


def run(fmeco: Call, *arguments: Any) -> Any:
    answer = fmeco(*arguments, "--json")
    assert answer.code == 0, answer.err + answer.out
    return answer.json


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "text", "path": "corpus.txt", "vocabulary": 300, "length": 12},
        "backbone": BODY,
        "train": {"steps": 6, "batch_size": 16, "tensorboard": False},
        **changes,
    }


def test_a_corpus_without_labels_serves_a_task_with_them(fmeco: Call) -> None:
    texts(Path("corpus.txt"))
    texts(Path("task.jsonl"))
    source = run(fmeco, "pretrain", write("p.yaml", settings()), "--out", "source")
    assert set(source["metrics"]) == {"val_loss", "val_accuracy"}, "mask is what is learned where there are no labels"
    again = run(fmeco, "evaluate", "source", "--split", "val")
    assert again["metrics"] == pytest.approx(source["metrics"], abs=1e-6), "what is hidden is the same every time"

    f = write(
        "f.yaml",
        {"train": {"epochs": 30, "batch_size": 16, "tensorboard": False}, "optimizer": {"name": "adamw", "lr": 0.01}},
    )
    tuned = run(fmeco, "finetune", f, "--from", "source", "--dataset", "task.jsonl", "--out", "tuned")
    assert tuned["metrics"]["val_accuracy"] == 1.0
    before, after = (checkpoint.open_checkpoint(Path(x["checkpoint"])) for x in (source, tuned))
    assert after.spec.preprocessing["tokenizer"] == before.spec.preprocessing["tokenizer"]
    Path("corpus.txt").unlink()
    assert run(fmeco, "evaluate", "tuned", "--dataset", "task.jsonl")["metrics"]["test_accuracy"] == 1.0
    rows = run(fmeco, "predict", "tuned", "cat dog cow", "task.jsonl", "rasp saw axe")["predictions"]
    assert [rows[0]["prediction"], rows[-1]["prediction"]] == ["animal", "tool"]
    assert len(rows) == 42
    assert fmeco("predict", "tuned", "absent.jsonl").code == 3
    Path("by.jsonl").write_text(
        "".join(
            json.dumps({**json.loads(line), "from": ("web", "mail")[i % 2]}) + "\n"
            for i, line in enumerate(Path("task.jsonl").read_text().splitlines())
        )
    )
    groups = run(fmeco, "evaluate", "tuned", "--dataset", "by.jsonl", "--by", "from")["groups"]
    assert {row["group"]: row["samples"] for row in groups} == {"web": 20, "mail": 20}
    probed = run(fmeco, "probe", "source", "--dataset", "task.jsonl")
    assert probed["metrics"]["accuracy"] > 0.5
    frozen = run(
        fmeco,
        "finetune",
        f,
        "--from",
        "source",
        "--dataset",
        "task.jsonl",
        "--set",
        "transfer.strategy=probe",
        "--out",
        "f",
    )
    assert run(fmeco, "evaluate", "f", "--split", "val")["metrics"] == pytest.approx(frozen["metrics"], abs=1e-5), (
        "features that were computed once are those of the model"
    )
    refused = fmeco("finetune", f, "--from", "source", "--dataset", "task.jsonl", "--set", "dataset.vocabulary=400")
    assert refused.code == 2 and "dataset.vocabulary: differs from the checkpoint's tokenizer" in refused.err


def test_a_language_model_resumes_exactly(fmeco: Call) -> None:
    texts(Path("corpus.txt"))
    raw = settings(backbone={**BODY, "causal": True, "dropout": 0.1})
    raw["dataset"]["pack"] = True
    whole = run(fmeco, "pretrain", write("p.yaml", raw), "--out", "whole")
    assert whole["metrics"]["val_perplexity"] == pytest.approx(math.exp(whole["metrics"]["val_loss"]))
    assert fmeco("predict", "whole", "cat").code == 2, "it makes no predictions"
    raw |= {"schedule": "constant", "train": {"epochs": 2, "batch_size": 16, "tensorboard": False}}
    one = api.pretrain(raw, out="one")
    raw["train"]["epochs"] = 1
    api.pretrain(raw, out="half")
    run(fmeco, "resume", "half", "--epochs", "2")
    a, b = (checkpoint.open_checkpoint(Path(x, "checkpoints/last").resolve()) for x in (one.run, "half"))
    for name, tensor in a.tensors("backbone").items():
        assert torch.equal(tensor, b.tensors("backbone")[name]), name


def built(**options: Any) -> Data:
    choice = choose("dataset", {"name": "text", "vocabulary": 300, "length": 12, **options})
    data: Data = choice.plugin.build({"known": None, "whole": False, "arch": None}, choice.options)
    return data


def test_every_kind_of_file_gives_the_same_texts() -> None:
    rows = [json.loads(line) for line in texts(Path("t.jsonl")).read_text().splitlines()]
    Path("t.csv").write_text("label,text\n" + "".join(f'{r["label"]},"{r["text"]}"\n' for r in rows))
    Path("t.tsv").write_text("".join(f"{r['text']}\t{r['label']}\n" for r in rows))
    pytest.importorskip("polars").DataFrame(rows).write_parquet("t.parquet")
    Path("t.txt").write_text("\n\n".join(r["text"] for r in rows))
    made = [
        built(path="t.jsonl"),
        built(path="t.csv"),
        built(path="t.parquet"),
        built(path="t.tsv", columns=["text", "label"]),
    ]
    for data in made:
        assert data.spec.fingerprint == made[0].spec.fingerprint
        assert data.spec.preprocessing["tokenizer"] == made[0].spec.preprocessing["tokenizer"]
        assert torch.equal(data.split("train")[3]["tokens"], made[0].split("train")[3]["tokens"])
    plain = built(path="t.txt")
    assert not plain.spec.targets and sum(plain.spec.sizes.values()) == 40
    Path("folder").mkdir()
    for part in ("train", "dev", "test"):
        Path("folder", f"{part}.tsv").write_text(Path("t.tsv").read_text())
    assert built(path="folder", columns=["text", "label"]).spec.sizes == {"train": 40, "val": 40, "test": 40}


def test_special_tokens_are_nobodys_to_write_and_empty_texts_are_bad() -> None:
    Path("t.jsonl").write_text(
        "\n".join(json.dumps({"text": f"[PAD] [SEP] {i}" if i else "", "label": "ab"[i % 2]}) for i in range(20))
    )
    data = built(path="t.jsonl")
    samples = [(part, i) for part in ("train", "val") for i in range(len(data.split(part)))]
    bad = 0
    for part, i in samples:
        try:
            assert int(data.split(part)[i]["tokens"].min()) > 1
        except api.errors.DataError as error:
            assert "t.jsonl:1: an empty text" in error.message
            bad += 1
    assert bad == 1


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('{"text": "a", "label": 1}\n{"txt": "b"}', {}, ":2: dataset.text: no 'text'"),
        ('{"text": "a"}\n{"text": "b"}', {}, "dataset.label: no 'label'"),
        ('{"text": "a", "label": 1}\nx', {}, ":2: not valid JSON"),
        ('{"text": "a", "label": 1}', {}, "only one class"),
        ('{"text": "a"}', {"label": None, "classes": ["x"]}, "have no labels"),
        ('{"text": "a"}', {"label": None, "tokenizer": "none.json", "vocabulary": None}, "no such file"),
    ],
)
def test_what_cannot_be_read_is_one_message(content: str, options: dict[str, Any], said: str) -> None:
    Path("t.jsonl").write_text(content)
    with pytest.raises((ConfigError, api.errors.DataError)) as refused:
        built(path="t.jsonl", **options)
    assert said in str(refused.value)
