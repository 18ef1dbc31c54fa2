"""What was said: transcripts as targets, the loss and the two ways to read it against their definitions, and the whole way
from a table of recordings to predictions. All recordings here are generated tones, one pitch per character."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fmeco as api
from fmeco.config.load import load_config
from fmeco.core import Batch, CheckpointError, ConfigError, DataError, DataSpec, InputSpec, Target, mix
from fmeco.objectives import ctc
from tests.conftest import Answer, tones, write
from tests.data.test_data import build
from tests.plugins.test_contract import backbone

soundfile = pytest.importorskip("soundfile")
Fmeco = Callable[..., Answer]
PITCH = {"a": 400.0, "b": 900.0, "c": 1700.0, "é": 2600.0, " ": 0.0}
SOUNDS = {"name": "audio", "path": "t.csv", "task": "text", "sample_rate": 8000, "seconds": 0.6, "mels": 16}
SETTINGS: dict[str, Any] = {
    "dataset": {**SOUNDS, "speaker": "who"},
    "backbone": {"name": "cnn", "widths": [16, 24]},
    "augment": "none",
    "optimizer": {"name": "adamw", "lr": 0.01},
    "train": {"epochs": 30, "batch_size": 8, "tensorboard": False, "precision": "fp32"},
    "evaluate": {"every": 10},
}


def spoken(said: list[str], path: str = "t.csv") -> Path:
    """A table of recordings of what is `said`, 80 ms per character, by four made-up speakers in turn."""
    rows = []
    for i, text in enumerate(said):
        draw = np.random.default_rng(i)
        t = np.arange(640) / 8000
        parts = [0.3 * np.sin(2 * np.pi * PITCH[one.lower()] * draw.uniform(0.97, 1.03) * t) for one in text]
        Path("wav").mkdir(exist_ok=True)
        wave = np.concatenate([*parts, np.zeros(0 if parts else 640)])
        soundfile.write(f"wav/{i:03}.wav", wave + 0.002 * draw.standard_normal(len(wave)), 8000)
        rows.append(f"wav/{i:03}.wav,{text},{('ann', 'bob', 'cid', 'dot')[i % 4]}")
    return write(path, "path,label,who\n" + "\n".join(rows) + "\n")


def sayings(count: int = 96) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("abc", k=2)) + " " + "".join(draw.choices("abc", k=2)) for _ in range(count)]


# ---------------------------------------------------------------- the formulas


def paths(steps: int, outputs: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every path, and the text that it says."""
    for path in itertools.product(range(outputs), repeat=steps):
        merged = [one for one, _ in itertools.groupby(path)]
        yield path, tuple(one for one in merged if one != ctc.BLANK)


def texts(scores: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every text, as the sum over its paths."""
    found: dict[tuple[int, ...], float] = {}
    p = scores.exp()
    for path, text in paths(*scores.shape):
        found[text] = found.get(text, 0.0) + math.prod(float(p[t, one]) for t, one in enumerate(path))
    return found


def forward_algorithm(scores: Tensor, said: list[int]) -> Tensor:
    """-log p(said) by equations 6 to 8 of the paper, one variable at a time."""
    y, extended = scores.exp(), [0, *itertools.chain.from_iterable((one, 0) for one in said)]
    alpha = [y[0, 0], y[0, extended[1]] if said else y.new_zeros(()), *[y.new_zeros(())] * (len(extended) - 2)]
    alpha = alpha[: len(extended)]
    for t in range(1, len(y)):
        before, alpha = alpha, []
        for s, label in enumerate(extended):
            total = before[s] + (before[s - 1] if s > 0 else 0.0)
            if s > 1 and label != 0 and label != extended[s - 2]:
                total = total + before[s - 2]
            alpha.append(total * y[t, label])
    return -(alpha[-1] + (alpha[-2] if said else 0.0)).log()


def test_the_loss_is_the_forward_algorithm_and_the_sum_over_all_paths() -> None:
    torch.manual_seed(0)
    free = torch.randn(4, 6, 4, dtype=torch.float64, requires_grad=True)
    scores = free.log_softmax(-1)
    said = [[1, 2, 2], [3], [], [1, 1, 2, 3]]
    steps = torch.tensor([6, 4, 6, 5])
    found = ctc.negative_log_likelihood(scores, steps, [torch.tensor(one, dtype=torch.int64) for one in said])
    wanted = torch.stack([forward_algorithm(scores[i, : int(steps[i])], one) for i, one in enumerate(said)])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    for i, one in enumerate(said):
        every = texts(scores[i, : int(steps[i])].detach())
        assert math.exp(-float(found[i].detach())) == pytest.approx(every[tuple(one)], rel=1e-10)
        assert sum(every.values()) == pytest.approx(1)
    gradients = [torch.autograd.grad(x.sum(), free, retain_graph=True)[0] for x in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)
    assert float(gradients[0][1, 4:].abs().sum()) == 0.0, "what is beyond a sample's steps does not count"


def test_reading_finds_the_likeliest_path_and_the_likeliest_text() -> None:
    """Greedy: the likeliest path. A beam that holds every prefix: the likeliest text, which is often another."""
    torch.manual_seed(1)
    differ = 0
    for _ in range(60):
        scores = torch.randn(5, 3, dtype=torch.float64).log_softmax(-1)
        best = max(paths(5, 3), key=lambda one: sum(float(scores[t, c]) for t, c in enumerate(one[0])))
        assert ctc.greedy(scores) == list(best[1])
        every = texts(scores)
        found = tuple(ctc.prefix_search(scores, 1000))
        assert every[found] == pytest.approx(max(every.values()), rel=1e-12)
        differ += found != best[1]
        assert every[tuple(ctc.prefix_search(scores, 4))] > 0.5 * every[found], "a narrow one comes near"
    assert differ > 3
    # Of probabilities whose product is no number any more.
    long = torch.full((3000, 3), math.log(0.3), dtype=torch.float64)
    long[::2, 0], long[1::2, 1] = math.log(0.4), math.log(0.4)
    assert set(ctc.prefix_search(long, 3)) <= {1, 2}


def test_metrics_are_edits_of_the_whole_split_over_its_words_and_characters() -> None:
    def slow(a: Any, b: Any) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    draw = random.Random(0)
    pairs = [tuple("".join(draw.choices("ab ", k=draw.randrange(6))) for _ in range(2)) for _ in range(80)]
    assert all(ctc.distance(a, b) == slow(a, b) for a, b in pairs)
    assert all(ctc.distance(a.split(), b.split()) == slow(a.split(), b.split()) for a, b in pairs)
    spec = image(16, 32)
    made = ctc.build(backbone("cnn", spec, widths=[8, 8]), spec)
    heard = {"aab": [1, 1, 1], "ab ab": [1, 2, 3, 1, 2], "b": [2], "a": []}
    wanted = [torch.tensor(["ab ".index(c) for c in text]) for text in heard]
    made.scores = lambda _: (None, None)  # type: ignore[method-assign]
    made.read = lambda *_: list(heard.values())  # type: ignore[method-assign]
    rows = made.rows(Batch([], {"label": wanted}, torch.arange(4), mix(0, torch.arange(4))[None]))
    assert made.metrics(rows) == {"wer": 2 / 5, "cer": 2 / 10, "exact": 0.5}


# ---------------------------------------------------------------- time


def image(high: int, wide: int) -> DataSpec:
    targets = {"label": Target("text", ("a", "b", " "))}
    return DataSpec("audio", {"spectrogram": InputSpec((1, high, wide), "float32", 1.0, (0.0,), (1.0,))}, targets)


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("cnn", {"widths": [8, 8]}, (3, 15)),
        ("resnet18", {"stem": "small"}, (2, 8)),
        ("regnet_y_400mf", {}, (1, 2)),
        ("efficientnet_b0", {}, (1, 2)),
        ("transformer", {"patch": [16, 4], "depth": 1}, (1, 16)),
    ],
)
def test_time_is_kept_by_what_has_a_map_and_the_vector_stays_what_it_was(
    name: str, options: dict[str, Any], grid: tuple[int, int]
) -> None:
    made = backbone(name, image(16, 64), **options).eval()
    x = {"spectrogram": torch.randn(3, 1, 16, 64)}
    with torch.no_grad():
        plain, whole = made(x), made.mapped(x)
    assert torch.equal(plain.vector, whole.vector)
    assert whole.grid == grid
    assert whole.tokens.shape[:2] == (3, grid[0] * grid[1])
    steps, count = ctc.over_time(whole)
    assert count.tolist() == [grid[1]] * 3
    cell = torch.stack([whole.tokens[:, row * grid[1] + 1] for row in range(grid[0])]).mean(0)
    torch.testing.assert_close(steps[:, 1], cell)
    if name == "resnet18":  # whose pooling is a mean
        torch.testing.assert_close(whole.tokens.mean(1), plain.pooled)
    assert not any(module._forward_pre_hooks for module in made.modules())


def test_what_is_heard_early_comes_early() -> None:
    made = backbone("cnn", image(16, 64), widths=[8, 8]).eval()
    x = torch.zeros(2, 1, 16, 64)
    x[1, :, :, 40:48] = 3.0
    with torch.no_grad():
        steps, _ = ctc.over_time(made.mapped({"spectrogram": x}))
    changed = (steps[1] - steps[0]).abs().sum(1) > 1e-4
    assert changed[10] and changed[11] and not changed[:7].any()


def test_what_keeps_no_time_or_has_too_little_is_refused() -> None:
    spec = image(16, 64)
    for name in ("mlp", "shufflenet_v2_x0_5"):
        with pytest.raises(ConfigError, match="needs features per time step"):
            ctc.build(backbone(name, spec), spec)
    with pytest.raises(ConfigError, match="kind class"):
        other = DataSpec("audio", spec.inputs, {"label": Target("class", ("a", "b"))})
        ctc.build(backbone("cnn", other), other)
    made = ctc.build(backbone("transformer", spec, patch=[16, 16], depth=1), spec)
    one = Batch([{"spectrogram": torch.zeros(1, 1, 16, 64)}], {}, torch.arange(1), mix(0, torch.arange(1))[None])
    one.target = {"label": [torch.tensor([0, 1, 0, 1])]}
    assert made.loss(one).sum.isfinite()
    one.target = {"label": [torch.tensor([0, 1, 1, 0])]}
    with pytest.raises(
        DataError, match=r"'abba' has 4 characters, 1 of them repeated.* need 5 time steps.*returns 4"
    ) as caught:
        made.loss(one)
    assert "backbone.patch" in caught.value.hints[0]


# ---------------------------------------------------------------- transcripts


def test_transcripts_are_read_or_refused_by_row() -> None:
    spoken(["ab", "A  b", "ba", "ab", "bA", "b a", "aa", "bb"])
    data = build(**SOUNDS, val_fraction=0.25)
    target = data.spec.targets["label"]
    assert (target.kind, target.classes) == ("text", (" ", "A", "a", "b"))
    assert data.spec == DataSpec.from_json(data.spec.to_json())
    found = {}
    for part in ("train", "val"):
        samples = data.split(part)
        assert len(samples.targets["label"]) == len(samples)
        for i, codes in enumerate(samples.targets["label"]):
            found[samples.name(i)] = "".join(target.classes[c] for c in codes)
    assert [found[f"wav/{i:03}.wav"] for i in range(8)] == ["ab", "A b", "ba", "ab", "bA", "b a", "aa", "bb"]
    assert build(**SOUNDS, lowercase=True).spec.targets["label"].classes == (" ", "a", "b")

    def refused(message: str, error: type[Exception] = DataError, **keys: Any) -> None:
        with pytest.raises(error, match=message):
            build(**{**SOUNDS, **keys})

    spoken(["ab", "", "ba", " "])
    refused("no transcript in row 3, 5")
    write("split.csv", "path,label,split\nwav/000.wav,ab,train\nwav/002.wav,aéb,val\n")
    refused("row 3, in the val split: the training split has no character 'é'", path="split.csv", split_column="split")
    refused("dataset.classes", ConfigError, classes=["a", "b"])
    refused("text learns only one", ConfigError, label_column=["label", "who"])
    tones(Path("folder"), each=2)
    refused("only for a table", ConfigError, path="folder")


def test_a_recording_that_does_not_fit_is_refused_and_not_cropped() -> None:
    spoken(["abcabcab", "ab", "ab", "ab"])
    data = build(**SOUNDS)
    parts = [data.split(part) for part in ("train", "val")]
    long, short = (next((s, i) for s in parts for i in range(len(s)) if s.name(i) == f"wav/00{n}.wav") for n in (0, 1))
    assert short[0][short[1]]["spectrogram"].shape == (1, 16, 60)
    with pytest.raises(DataError, match=r"wav/000.wav: 0.64 s, longer than dataset.seconds, 0.6"):
        long[0][long[1]]
    raised = build(**{**SOUNDS, "seconds": 0.64})
    assert raised.spec.inputs["spectrogram"].shape == (1, 16, 64)
    assert "whole" not in build(**{**SOUNDS, "task": "auto"}).spec.preprocessing


# ---------------------------------------------------------------- the whole way


def test_from_a_table_of_recordings_to_what_was_said(fmeco: Fmeco) -> None:
    said = sayings()
    spoken(said)
    answer = fmeco("pretrain", write("c.yaml", SETTINGS), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    metrics = answer.json["metrics"]
    assert metrics["val_cer"] < 0.1
    assert load_config(Path("run/config.yaml"), stage="pretrain").objective.name == "ctc"  # type: ignore[union-attr]
    wide = fmeco("evaluate", "run", "--split", "val", "--json", "--by", "who").json
    assert wide["metrics"]["val_wer"] == metrics["val_wer"]
    assert wide["groups"]

    rows = fmeco("predict", "run", "wav/000.wav", "wav/001.wav", "--json").json["predictions"]
    assert [row["prediction"] for row in rows] == said[:2]
    assert all(0 < row["probability"] <= 1 for row in rows)
    spoken(["abc abc abc", "ab ca"])
    rows = fmeco("predict", "run", "wav/000.wav", "wav/001.wav", "--json").json["predictions"]
    assert "longer than dataset.seconds" in rows[0]["error"] and rows[1]["error"] is None
    # Another table has the checkpoint's alphabet, and its way to write.
    spoken(["ab cb", "bb ac"], "u.csv")
    assert fmeco("evaluate", "run", "--dataset", "u.csv", "--json").json["metrics"]["test_cer"] < 0.5
    spoken(["ab cb", "bb aé"], "u.csv")
    answer = fmeco("evaluate", "run", "--dataset", "u.csv")
    assert answer.code == 3
    assert "the checkpoint has no character 'é'" in answer.err

    # A recogniser of other characters starts from it; those that both know keep their rows.
    spoken(["ab éb", "bé aé", "éa bb", "ab é"] * 3, "v.csv")
    short = ("--set", "train.epochs=1", "--set", "train.tensorboard=false", "--set", "dataset.task=text")
    answer = fmeco("finetune", "--from", "run", "--dataset", "v.csv", "--out", "tuned", *short)
    assert answer.code == 0, answer.err
    assert api.load("tuned").spec.targets["label"].classes == (" ", "a", "b", "é")
    answer = fmeco("rank", "run", "--dataset", "v.csv", "--set", "dataset.task=text")
    assert answer.code == 2 and "is a text" in answer.err
    # Classes of whole recordings do, too; and the recogniser's rule not to crop is not theirs.
    tones(Path("folder"))
    answer = fmeco("finetune", "--from", "run", "--dataset", "folder", "--out", "classes", *short[:4])
    assert answer.code == 0, answer.err
    assert "whole" not in api.load("classes").spec.preprocessing


def test_a_beam_reads_what_the_checkpoint_says(fmeco: Fmeco) -> None:
    spoken(sayings(24))
    settings = {**SETTINGS, "objective": {"name": "ctc", "beam": 4}, "train": {**SETTINGS["train"], "epochs": 1}}
    answer = fmeco("pretrain", write("c.yaml", settings), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert set(answer.json["metrics"]) == {"val_wer", "val_cer", "val_exact"}
    assert fmeco("resume", "run", "--epochs", "+1").code == 0
    assert isinstance(fmeco("predict", "run", "wav/000.wav", "--json").json["predictions"][0]["prediction"], str)
    with pytest.raises(CheckpointError, match="kind text"):
        build(known=api.load("run").spec, **{**SOUNDS, "task": "class"})
