"""Recommendation: histories from tables of events, whole catalogues ranked, and catalogues that grow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import transplant
from fmeco.config.check import choose
from fmeco.core import Batch, ConfigError, Data, DataError, DataSpec, InputSpec, mix, pad
from fmeco.nn.ids import FIRST_ITEM, UNKNOWN_ITEM
from fmeco.objectives._ranking import Catalogue, rank
from fmeco.objectives.next import draw, sampled_losses
from tests.conftest import Answer, write
from tests.data.test_data import build

Call = Callable[..., Answer]
BODY = {"name": "transformer", "width": 16, "depth": 1, "heads": 2, "dropout": 0.0}
Event = tuple[str, str, int]  # user, item, time


def shop(
    path: str = "shop.csv", users: int = 20, items: int = 12, each: int = 9, more: str = "", tag: str = "i"
) -> Path:
    """Users who go through the items in a circle, each from another one on; all at the same pace."""
    rows = [f"u{u},{tag}{(5 * u + k) % items},{1000 * k + u}" for k in range(each) for u in range(users)]
    return write(path, "user,item,time\n" + "\n".join(sorted(rows, key=lambda row: hash_of(row))) + "\n" + more)


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(text)) % 1009


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "events", "path": "shop.csv", "length": 5},
        "backbone": {**BODY, "causal": True},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 30, "batch_size": 8, "tensorboard": False},
        "evaluate": {"every": 15},
        **changes,
    }


def run(fmeco: Call, *arguments: Any) -> Any:
    answer = fmeco(*arguments, "--json")
    assert answer.code == 0, answer.err + answer.out
    return answer.json


def told(data: Data, part: str) -> list[tuple[list[str], list[str]]]:
    """Samples as item names: tokens, and what was seen. An item that training did not see is called ?."""
    names = ["", "?", *data.spec.preprocessing["items"]]
    samples = data.split(part)
    each = [samples[i] for i in range(len(samples))]
    return [tuple([names[i] for i in one.get(key, ())] for key in ("tokens", "seen")) for one in each]  # type: ignore[misc]


# ---------------------------------------------------------------- data


def test_what_is_asked_for_is_what_came_next_and_what_is_shown_was_before() -> None:
    late = "u1,new,8500\nu1,i0,8600\nfresh,i3,8501\nfresh,i4,8502\n"
    path = shop(more=late)
    data = build(name="events", path=str(path), length=4, val_fraction=0.2, test_fraction=0.2)
    rows = [line.split(",") for line in path.read_text().split()[1:]]
    events = sorted([(user, item, int(time)) for user, item, time in rows], key=lambda row: row[2])
    cut = next(int(note.split("from ")[1].split()[0]) for note in data.notes if "split by 'time'" in note)
    known = {item for _, item, time in events if time < cut}
    want, left_out = [], 0
    for i, (user, item, time) in enumerate(events):
        had = [x for who, x, _ in events[:i] if who == user and x in known]
        if time >= cut and not had:
            left_out += 1
        elif time >= cut:
            want.append(([*had[-4:], item if item in known else "?"], sorted(set(had))))
    got = told(data, "val") + told(data, "test")
    key = lambda sample: (len(sample[0]), sample)  # noqa: E731
    assert sorted(got, key=key) == sorted(want, key=key)
    assert left_out == 1 and sum(tokens[-1] == "?" for tokens, _ in got) == 1
    notes = "\n".join(data.notes)
    assert "test: 1 events without a known earlier item of their user" in notes
    assert "events are of items that training did not see, and count as missed" in notes
    assert (
        "0.0% of the training events repeat an earlier item of their user: such items are not recommended again"
        in notes
    )

    steps = Counter(pair for tokens, _ in told(data, "train") for pair in zip(tokens[:-1], tokens[1:], strict=True))
    old = [(user, item) for user, item, time in events if time < cut]
    users = {user for user, _ in old}
    mine = {user: [item for who, item in old if who == user] for user in users}
    assert steps == Counter(pair for one in mine.values() for pair in zip(one[:-1], one[1:], strict=True)), (
        "every step from item to item is trained on once"
    )
    assert max(len(tokens) for tokens, _ in told(data, "train")) == 5
    assert not any(seen for _, seen in told(data, "train"))


def test_splits_and_files() -> None:
    path = shop(more="one,i1,5\ntwo,i1,6\ntwo,i2,7\n")
    data = build(name="events", path=str(path), split="leave_one_out")
    assert data.spec.sizes == {"train": 21, "val": 20, "test": 20}, "users of fewer than three events are for training"
    assert any("leave_one_out" not in note and "last event" in note for note in data.notes)
    for val, test in zip(told(data, "val"), told(data, "test"), strict=True):
        assert test[0][:-1] == val[0], "the one before last, then the last"
    ages = build(name="events", path=str(shop("again.csv", items=4, each=9)))
    assert ages.spec.preprocessing["repeats"] and set(ages.spec.inputs) == {"tokens"}
    assert not build(name="events", path="again.csv", repeats=False).spec.preprocessing["repeats"]

    text = path.read_text()
    Path("shop.tsv").write_text(text.replace(",", "\t"))
    Path("bare.data").write_text("\n".join(f"{u}\t{i}\t5\t{t}" for u, i, t in (r.split(",") for r in text.split()[1:])))
    pytest.importorskip("polars").read_csv("shop.csv").write_parquet("shop.parquet")
    names = ["user", "item", "stars", "time"]
    made = [build(name="events", path=name) for name in ("shop.csv", "shop.tsv", "shop.parquet")]
    made += [build(name="events", path=name, columns=names) for name in ("bare.data", "shop.csv")]
    for other in made[1:]:
        assert other.spec.fingerprint == made[0].spec.fingerprint
        assert other.spec.preprocessing["items"] == made[0].spec.preprocessing["items"]
        assert told(other, "test") == told(made[0], "test")


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("user,item,when\na,b,1", {}, "dataset.time: no column 'time'"),
        ("user,item,time\na,b,1\na,,2", {}, "column 'item': no value in row 3"),
        ("user,item,time\na,b,1\na,c,soon", {}, "row 3: 'soon' is not a time"),
        ("a\tb\t1\na\tc\tsoon", {"columns": ["user", "item", "time"]}, "row 2: 'soon' is not a time"),
        ("a\tb\t1\na\tc", {"columns": ["user", "item", "time"]}, "row 2 has 2 values, but the table has 3 columns"),
        ("user,item,time\na,b,1\nb,b,2\nc,b,3\nd,b,4", {}, "no user has two training events"),
        ("user,item,time\na,b,1\na,c,2", {"split": "leave_one_out"}, "needs users with three or more events"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(content: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError)) as refused:
        build(name="events", path=str(write("bad.csv", content)), **options)
    assert said in str(refused.value) and "\n" not in refused.value.message


# ---------------------------------------------------------------- metrics and losses


def test_metrics_are_their_formulas() -> None:
    catalogue = Catalogue(tuple(f"i{n}" for n in range(40)), repeats=False)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 42, generator=generator).mul(4).round()  # with ties
    wanted = torch.randint(FIRST_ITEM, 42, (200,), generator=generator)
    wanted[::20] = UNKNOWN_ITEM
    seen = torch.randint(FIRST_ITEM, 42, (200, 5), generator=generator)
    seen[:, 3:] = 0
    tokens = torch.randint(FIRST_ITEM, 42, (200, 2), generator=generator)
    rows = catalogue.answers(scores, {"tokens": tokens, "seen": seen}, wanted)
    ndcg = hits = reciprocal = 0.0
    for i in range(200):
        had = {*seen[i].tolist(), *tokens[i].tolist()}
        order = sorted((n for n in range(FIRST_ITEM, 42) if n not in had), key=lambda n: (-float(scores[i, n]), n))
        r = order.index(int(wanted[i])) + 1 if int(wanted[i]) in order else None
        assert int(rows["rank"][i]) == (r or 0)
        best = sorted((float(scores[i, n]) for n in order), reverse=True)[:10]
        assert scores[i, rows["top"][i]].tolist() == best and not had & set(rows["top"][i].tolist())
        if r is not None:
            reciprocal += 1 / r
            ndcg += 1 / math.log2(r + 1) if r <= 10 else 0.0
            hits += r <= 10
    used = len({int(n) for n in rows["top"].flatten()})
    want = {"ndcg@10": ndcg / 200, "hr@10": hits / 200, "mrr": reciprocal / 200, "coverage@10": used / 40}
    assert catalogue.metrics(rows) == pytest.approx(want)
    assert int((rows["rank"] == 0).sum()) > 10
    again = catalogue._replace(repeats=True).allowed(scores, {"tokens": tokens, "seen": seen})
    assert torch.equal(again[:, FIRST_ITEM:], scores[:, FIRST_ITEM:])
    few = Catalogue(("a", "b", "c"), repeats=False)
    found = few.predict(torch.zeros(1, 5), {"tokens": torch.tensor([[2, 0]]), "seen": torch.tensor([[2, 3]])})
    (row,) = few.decode(found)
    assert row == {"prediction": "c", "probability": 1.0, "top": "c", "top_probabilities": "1.000000"}
    assert rank(torch.zeros(1, 5), torch.tensor([4])).tolist() == [5], "ties go to the lower id"
    (row,) = few.decode(few.predict(torch.zeros(1, 5), {"tokens": torch.tensor([[2, 3, 4]])}))
    assert (row["prediction"], row["probability"]) == ("", 0.0), "who has everything gets nothing"


def test_a_sample_of_the_items_stands_for_all_of_them() -> None:
    items, count = 50, 8
    scores = torch.randn(items, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = torch.logsumexp(scores, 0)
    total = 0.0
    for seed in range(1500):
        drawn = draw(mix(seed, torch.arange(1)), count, items)[0] - FIRST_ITEM
        loss = sampled_losses(scores[None, None, 7], scores[drawn][None, None], (drawn == 7)[None, None], items)
        inside = float(scores[7].exp()) + sum(
            float((scores[n] + math.log(items / count)).exp()) for n in drawn.tolist() if n != 7
        )
        assert float(loss) == pytest.approx(math.log(inside) - float(scores[7]))
        total += inside
    assert total / 1500 == pytest.approx(float(exact.exp()), rel=0.03), "unbiased, with accidental hits left out"
    keys = mix(3, torch.arange(4000))
    drawn = draw(keys, 5, items)
    assert torch.equal(drawn[17:19], draw(keys[17:19], 5, items)), "who shares a batch changes nothing"
    counts = (drawn - FIRST_ITEM).flatten().bincount(minlength=items)
    assert len(counts) == items and float((counts / 400 - 1).abs().max()) < 0.2, "each item is as likely"


def spec_of(items: int = 20, repeats: bool = True) -> DataSpec:
    how = {"items": [f"i{n}" for n in range(items)], "ids": items + FIRST_ITEM, "repeats": repeats}
    return DataSpec("events", {"tokens": InputSpec((9,), "int64", ragged=True)}, preprocessing=how)


def objective(name: str, spec: DataSpec, **options: Any) -> Any:
    torch.manual_seed(0)
    body = choose("backbone", {**BODY, "causal": name == "next"})
    chosen = choose("objective", {"name": name, **options})
    backbone = body.plugin.build({"spec": spec, "arch": None}, body.options)
    made = chosen.plugin.build({"backbone": backbone, "spec": spec}, chosen.options).eval()
    torch.nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("name", ["next", "mask"])
def test_what_comes_next_is_ranked_by_the_history_alone(name: str) -> None:
    made = objective(name, spec_of())
    generator = torch.Generator().manual_seed(2)
    each = [torch.randint(FIRST_ITEM, 22, (n,), generator=generator) for n in (9, 2, 5, 9)]
    places = torch.arange(4)
    with torch.inference_mode():
        rows = made(Batch([{"tokens": pad(each)}], {}, places, mix(0, places)[None]), "rows")
        for i, tokens in enumerate(each):
            history = {"tokens": tokens[None, :-1]}
            found = made(Batch([history], {}, places[:1], mix(1, places[:1])[None]), "predict")
            best = [made.catalogue.items[n - FIRST_ITEM] for n in rows["top"][i].tolist()]
            assert made.decode(found)[0]["top"].split("|") == best, (
                "what is asked for is not seen, nor is who shares a batch"
            )
            if name == "next":
                features = made.backbone(history).tokens[0, -1].double()
                scores = made.backbone.stem.embedding.weight.double() @ features + made.bias.double()
                probability = scores[FIRST_ITEM:].softmax(0)
                want = 1 + int((scores[FIRST_ITEM:] > scores[tokens[-1]]).sum())
                assert int(rows["rank"][i]) == want
                assert float(found["probability"][0, 0]) == pytest.approx(float(probability.max()), rel=1e-4)


def test_a_sampled_loss_nears_that_of_all_items() -> None:
    spec = spec_of(60)
    places = torch.arange(6)
    tokens = pad([torch.randint(FIRST_ITEM, 62, (n,), generator=torch.Generator().manual_seed(n)) for n in range(3, 9)])
    full = objective("next", spec)

    def loss(made: Any, seed: int) -> float:
        made.load_state_dict(full.state_dict())
        with torch.inference_mode():
            found = made(Batch([{"tokens": tokens}], {}, places, mix(seed, places)[None]), "loss")
        return float(found.sum / found.count)

    sampled = objective("next", spec, negatives=40)
    assert "40 items" in sampled.about["loss"]
    mean = sum(loss(sampled, seed) for seed in range(100)) / 100
    assert mean == pytest.approx(loss(full, 0), abs=0.15)
    assert full.negatives is None and objective("next", spec_of(100_001)).negatives == 1000
    for negatives, said in ((60, "60, but there are only 60 items"), (61, "61, but there are only 60 items")):
        with pytest.raises(ConfigError, match=said):
            objective("next", spec, negatives=negatives)
    words = DataSpec("text", spec.inputs, preprocessing={"ids": 62})
    with pytest.raises(ConfigError, match="is for events"):
        objective("next", words, negatives=5)


# ---------------------------------------------------------------- from a table to recommendations


def test_a_circle_is_learned_and_told(fmeco: Call) -> None:
    shop()
    result = run(fmeco, "pretrain", write("p.yaml", settings()), "--out", "run")
    assert set(result["metrics"]) == {"val_ndcg@10", "val_hr@10", "val_mrr", "val_coverage@10"}
    assert result["metrics"]["val_ndcg@10"] > 0.9
    popular = run(fmeco, "evaluate", "run", "--baseline", "popularity")
    markov = run(fmeco, "evaluate", "run", "--baseline", "transition")["baseline"]["metrics"]
    assert markov["test_ndcg@10"] == pytest.approx(1.0), "the next item follows from the last one"
    assert popular["baseline"]["metrics"]["test_ndcg@10"] < 0.8
    assert popular["baseline"]["difference"][1] > 0
    assert fmeco("evaluate", "run", "--baseline", "gbdt").code == 2

    write("now.csv", "item,user,time,extra\ni3,zoe,1,x\ni4,zoe,2,x\ni9,kim,5,x\nnope,kim,6,x\nnope,eve,7,x\n")
    answer = fmeco("predict", "run", "now.csv", "now.csv:kim", "i2,i3,i4", "i2,ix", "--json")
    assert "now.csv: 2 events of items" in answer.err and "now.csv:kim: 1 events of items" in answer.err
    rows = {row["input"]: row for row in answer.json["predictions"]}
    assert list(rows) == ["now.csv:eve", "now.csv:kim", "now.csv:zoe", "i2,i3,i4", "i2,ix"]
    assert [rows[key]["prediction"] for key in ("now.csv:zoe", "i2,i3,i4")] == ["i5", "i5"]
    assert rows["now.csv:kim"]["prediction"] == "i10", "an item that is not known is left out of a history, and said"
    assert "the model knows no item of this history" in rows["now.csv:eve"]["error"] and "no item ix" in rows["i2,ix"][
        "error"
    ].replace("'", "")
    top = rows["i2,i3,i4"]["top"].split("|")
    assert len(top) == 9 and not {"i2", "i3", "i4"} & set(top), "what a user had is not recommended again"
    shares = [float(share) for share in rows["i2,i3,i4"]["top_probabilities"].split("|")]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
    assert fmeco("predict", "run", "i2,i3", "--output", "out.csv").code == 0
    for absent, said in (("absent.csv", "no such file"), ("now.csv:bob", "no user 'bob'")):
        refused = fmeco("predict", "run", absent)
        assert refused.code == 3 and said in refused.err

    whole = run(fmeco, "evaluate", "run", "--dataset", "now.csv")
    assert whole["samples"] == 2, "a table is one of events for a checkpoint of events"
    assert run(fmeco, "embed", "run", "--output", "e.npz")["width"] == 16
    assert len(np.load("e.npz")["names"]) == popular["samples"]
    info = run(fmeco, "info", "run")
    assert info["modality"] == "events" and info["preprocessing"]["length"] == 5
    assert fmeco("check", "p.yaml").code == 0


def test_a_hidden_item_at_the_end_is_what_comes_next(fmeco: Call) -> None:
    shop()
    raw = settings(backbone=BODY, objective={"name": "mask", "rate": 0.3, "swap": False})
    raw["train"]["epochs"] = 60
    assert run(fmeco, "pretrain", write("p.yaml", raw), "--out", "run")["metrics"]["val_ndcg@10"] > 0.8
    (row,) = run(fmeco, "predict", "run", "i0,i1,i2,i3,i4,i5,i6")["predictions"]
    assert row["prediction"] == "i7"
    assert "popularity" in fmeco("evaluate", "run", "--baseline", "popularity").out


def test_a_catalogue_grows_when_finetuning(fmeco: Call) -> None:
    shop()
    shop("other.csv", items=16, users=12)  # i12 to i15 are new
    shop("short.csv", items=8, users=12)
    source = run(fmeco, "pretrain", write("p.yaml", settings()), "--out", "run")
    f = write(
        "f.yaml",
        {"transfer": "full", "train": {"epochs": 2, "batch_size": 8, "tensorboard": False}, "optimizer": {"lr": 1e-6}},
    )
    answer = fmeco("finetune", f, "--from", "run", "--dataset", "other.csv", "--out", "tuned")
    assert answer.code == 0, answer.err
    assert "4 new items are appended to the checkpoint's 12" in answer.err
    assert "reshaped: stem.embedding.weight" in answer.err
    before, after = (checkpoint.open_checkpoint(Path(x, "checkpoints/last").resolve()) for x in ("run", "tuned"))
    items = after.spec.preprocessing["items"]
    assert items[:12] == before.spec.preprocessing["items"] and items[12:] == ["i12", "i13", "i14", "i15"]
    assert after.spec.preprocessing["length"] == 5
    best = checkpoint.open_checkpoint(Path(source["checkpoint"]))
    for kind, name in (("backbone", "stem.embedding.weight"), ("objective", "bias")):
        old, new = best.tensors(kind)[name], after.tensors(kind)[name]
        assert len(old) == 14 and len(new) == 18
        torch.testing.assert_close(new[:14], old, atol=1e-4, rtol=0, msg=f"{name}: known items keep what was learned")
    assert run(fmeco, "evaluate", "tuned", "--split", "val")["samples"] == 11
    run(fmeco, "resume", "tuned", "--epochs", "+1")
    run(fmeco, "finetune", f, "--from", "run", "--dataset", "short.csv", "--out", "fewer")
    fewer = checkpoint.open_checkpoint(Path("fewer/checkpoints/last").resolve())
    assert fewer.spec.preprocessing["items"] == before.spec.preprocessing["items"]

    words = {"tokens": InputSpec((9,), "int64", ragged=True)}
    choice = choose("backbone", BODY)
    small, large = (
        choice.plugin.build({"spec": DataSpec("text", words, preprocessing={"ids": n}), "arch": None}, choice.options)
        for n in (50, 60)
    )
    with pytest.raises(checkpoint.CheckpointError, match="does not fit"):
        transplant.transplant(large, small.state_dict(), source="words of another tokenizer")


def test_baselines_are_what_they_are_called(fmeco: Call) -> None:
    rng = np.random.default_rng(0)
    rows = [f"u{u},i{int(rng.zipf(1.6)) % 25},{100 * k + u}" for k in range(12) for u in range(15)]
    write("shop.csv", "user,item,time\n" + "\n".join(rows) + "\n")
    raw = settings()
    raw["train"]["epochs"] = 1
    run(fmeco, "pretrain", write("p.yaml", raw), "--out", "run")
    data = build(name="events", path="shop.csv", length=5)
    assert data.spec.preprocessing["repeats"]
    train = [tokens for tokens, _ in told(data, "train")]
    items = data.spec.preprocessing["items"]
    pairs = Counter(pair for one in train for pair in zip(one[:-1], one[1:], strict=True))
    came = Counter(item for one in train for item in one[1:])
    order = sorted(items, key=lambda item: (-came[item], items.index(item)))
    ranks: dict[str, list[int]] = {"popularity": [], "transition": []}
    for tokens, _ in told(data, "test"):
        after = sorted(items, key=lambda item: (-pairs[tokens[-2], item], order.index(item)))
        for name, ranking in (("popularity", order), ("transition", after)):
            ranks[name].append(ranking.index(tokens[-1]) + 1 if tokens[-1] in ranking else 0)
    for name, each in ranks.items():
        found = run(fmeco, "evaluate", "run", "--baseline", name)["baseline"]
        assert found["metrics"]["test_mrr"] == pytest.approx(sum(1 / r for r in each if r) / len(each))
        assert found["trained_on"] == sum(pairs.values())
