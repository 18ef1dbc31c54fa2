"""Backbones of transformers: its own numbers under its own names, from a folder or a hub, and no code of a stranger's."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import fmeco as api
from fmeco.backbones._hf_config import network
from fmeco.checkpoints import sources, transplant
from fmeco.config.check import choose
from fmeco.core import CheckpointError, ConfigError, DataSpec, InputSpec, fit
from tests.conftest import Answer, photos, texts, tones, write
from tests.data.test_data import build as build_data
from tests.modalities.test_ctc import sayings, spoken

hf = pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")
tokenizers = pytest.importorskip("tokenizers")
Fmeco = Callable[..., Answer]
SHORT = ("--set", "train.epochs=1", "--set", "train.tensorboard=false", "--set", "train.batch_size=16")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# model type -> what makes it small, and the special tokens that its tokenizer begins with
BODIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bert": ({**SMALL, "max_position_embeddings": 40}, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]),
    "roberta": ({**SMALL, "max_position_embeddings": 140}, ["<s>", "<pad>", "</s>", "<unk>"]),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40}, ["<|endoftext|>"]),
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]),
    "modernbert": ({**SMALL, "max_position_embeddings": 40}, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]),
    "llama": ({**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 40}, ["<unk>", "<s>", "</s>"]),
    "electra": ({**SMALL, "embedding_size": 16}, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]),
}
IMAGES: dict[str, dict[str, Any]] = {
    "vit": {**SMALL, "image_size": 32, "patch_size": 8},
    "deit": {**SMALL, "image_size": 32, "patch_size": 8},
    "dinov2": {**SMALL, "image_size": 32, "patch_size": 8},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "window_size": 2},
    "resnet": {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8},
}


def tokenizer(special: list[str]) -> Any:
    """Words of `texts`, after the special tokens; the post-processor frames a text with two of them, if there are."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["the cat and the saw"], trainer)
    frame = next(((a, b) for a, b in (("[CLS]", "[SEP]"), ("<s>", "</s>")) if a in special), None)
    if frame is not None:
        ids = [(token, special.index(token)) for token in frame]
        made.post_processor = tokenizers.processors.TemplateProcessing(f"{frame[0]} $A {frame[1]}", None, ids)
    return made


def model(folder: str, kind: str, head: str = "", **changes: Any) -> Any:
    """A random model of transformers in a folder, as its save_pretrained writes it, with a tokenizer or preprocessor."""
    torch.manual_seed(3)
    small = {**(BODIES[kind][0] if kind in BODIES else IMAGES[kind]), **changes}
    pads: dict[str, Any] = {}
    words = tokenizer(BODIES[kind][1]) if kind in BODIES else None
    if words is not None:
        pad = next((i for i in range(2) if words.id_to_token(i) in ("[PAD]", "<pad>")), None)
        pads = {"vocab_size": words.get_vocab_size(), "pad_token_id": pad, "bos_token_id": 0, "eos_token_id": 0}
    described = hf.AutoConfig.for_model(kind, **{**pads, **small})
    described.architectures = []
    auto = getattr(hf, f"AutoModel{head}")
    made = auto.from_config(described, attn_implementation="eager").eval()
    for p in made.parameters():  # new biases and layer scales are constants, which hide what is not loaded
        torch.nn.init.normal_(p, std=0.1)
    made.save_pretrained(folder)
    if words is not None:
        words.save(f"{folder}/tokenizer.json")
    else:
        how = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}
        how |= {"image_processor_type": "ViTImageProcessor"}
        Path(folder, "preprocessor_config.json").write_text(json.dumps(how))
    return made


def build(arch: str, spec: DataSpec, **options: Any) -> Any:
    choice = choose("backbone", {"name": f"hf/{arch}", **options})
    return choice.plugin.build({"spec": spec, "arch": choice.arch}, choice.options).eval()


def started(arch: str, spec: DataSpec | None = None, **options: Any) -> tuple[Any, transplant.Report, DataSpec]:
    """A backbone with the model's own weights, the report of their transplant, and how inputs are made."""

    choice = sources.completed(choose("backbone", {"name": f"hf/{arch}", **options}))
    source = sources.published(choice, "DEFAULT")
    spec = spec or source.spec
    made = choice.plugin.build({"spec": spec, "arch": choice.arch}, choice.options).eval()
    return made, transplant.transplant(made, source.state, source=source.ref), spec


def image(size: int = 32, channels: int = 3) -> DataSpec:
    return DataSpec("image", {"image": InputSpec((channels, size, size), "uint8", 1 / 255, (0.5,), (0.25,))})


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("kind", list(BODIES))
def test_a_text_gives_what_the_librarys_own_classifier_reads(kind: str) -> None:
    """Of texts of several lengths: tokens as transformers computes them of each alone, and logits of its classifier."""
    plain = model("m", kind, "ForSequenceClassification")
    made, report, spec = started("./m")
    assert report.share == 1.0
    assert not report.missing
    words = tokenizers.Tokenizer.from_file("m/tokenizer.json")
    ids = [words.encode(text).ids for text in ("cat", "the cat and the saw saw", "a saw")]
    offset = spec.inputs["tokens"].offset
    assert offset == (0 if "[PAD]" in BODIES[kind][1] else 1)
    batch = torch.zeros(3, max(map(len, ids)), dtype=torch.int64)
    for i, one in enumerate(ids):
        batch[i, : len(one)] = torch.tensor(one) + offset
    with torch.no_grad():
        found = made({"tokens": batch})
        for i, one in enumerate(ids):
            alone = torch.tensor([one])
            body = plain.base_model(alone)
            same(found.tokens[i, : len(one)], body.last_hidden_state[0])
            assert found.mask[i].sum() == len(one)
            if kind in ("bert", "gpt2", "llama", "roberta"):
                wanted = plain(alone).logits[0]
                if kind == "bert":
                    logits = plain.classifier(found.pooled[i])
                elif kind == "roberta":
                    logits = plain.classifier(found.pooled[i][None, None])[0]
                else:
                    logits = plain.score(found.pooled[i])
                same(logits, wanted)
        mean = build("./m", spec, pooling="mean")({"tokens": batch})
        assert mean.pooled is None
    assert made.causal == (kind in ("gpt2", "llama"))
    assert bool(made.vocabulary) == (kind != "electra"), "its embeddings have another width"


def sentence(folder: str, pooling: dict[str, Any], *more: str, **stated: Any) -> None:
    """Add the files of sentence-transformers to a model: modules.json, and those of its two first modules."""
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    Path(folder, "modules.json").write_text(json.dumps(listed))
    Path(folder, "1_Pooling").mkdir(exist_ok=True)
    Path(folder, "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    Path(folder, "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": False, **stated}))


OLD = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
WAYS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "mean": ({**OLD, "pooling_mode_mean_tokens": True}, lambda x: x.mean(0)),
    "cls": ({**OLD, "pooling_mode_cls_token": True}, lambda x: x[0]),
    "max": ({"pooling_mode": "max"}, lambda x: x.amax(0)),
    "last": ({"pooling_mode": ["lasttoken"]}, lambda x: x[-1]),
    "not stated": ({}, lambda x: x.mean(0)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_sentence_is_pooled_as_its_modules_say(way: str, normalize: bool) -> None:
    plain = model("m", "bert")
    stated, pooled = WAYS[way]
    sentence("m", stated, *(["Normalize"] if normalize else []), max_seq_length=24)
    made, report, spec = started("./m")
    assert report.share == 1.0
    assert spec.inputs["tokens"].shape == (24,) and spec.preprocessing["length"] == 24
    words = tokenizers.Tokenizer.from_file("m/tokenizer.json")
    ids = [words.encode(text).ids for text in ("cat", "the cat and the saw saw", "a saw")]
    batch = torch.zeros(3, max(map(len, ids)), dtype=torch.int64)
    for i, one in enumerate(ids):
        batch[i, : len(one)] = torch.tensor(one)
    with torch.no_grad():
        found = made({"tokens": batch}).vector
        for i, one in enumerate(ids):
            wanted = pooled(plain.base_model(torch.tensor([one])).last_hidden_state[0])
            same(found[i], wanted / wanted.norm() if normalize else wanted)


def test_the_config_and_its_checkpoint_decide_over_modules(fmeco: Fmeco) -> None:
    model("m", "bert")
    sentence("m", {"pooling_mode": "mean"}, "Normalize")
    made, _, _ = started("./m", pooling="model")
    assert made.pooling.by == "model" and made.pooling.normalize
    texts(Path("t.jsonl"))
    answer = fmeco("finetune", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl", *SHORT, "--out", "run")
    assert answer.code == 0, answer.err
    shutil.rmtree("m")  # the checkpoint holds what the modules said
    backbone = api.load("run").objective.backbone
    assert tuple(backbone.pooling) == ("mean", True)
    assert fmeco("predict", "run", "the cat", "--json").code == 0


def test_lower_case_is_part_of_the_tokenizer() -> None:
    model("m", "bert")
    sentence("m", {"pooling_mode": "mean"}, do_lower_case=True)
    _, _, spec = started("./m")
    words = tokenizers.Tokenizer.from_str(spec.preprocessing["tokenizer"])
    assert words.encode("The CAT").ids == words.encode("the cat").ids


SIX = {
    "Transformer": "base.modules.transformer",
    "Pooling": "sentence_transformer.modules.pooling",
    "Normalize": "base.modules.normalize",
}


def rewritten(folder: str, name: str, **keys: Any) -> None:
    """Change keys of a JSON file; a value of None removes one."""
    path = Path(folder, name)
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **keys}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_folder_of_version_6_states_length_and_prompts_elsewhere() -> None:
    """As SentenceTransformer.save_pretrained of 6.2 writes it: modules by their full place, the length beside the tokenizer."""
    model("m", "bert")
    sentence("m", {"pooling_mode": "mean", "include_prompt": True}, "Normalize")
    listed = json.loads(Path("m/modules.json").read_text())
    for module in listed:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.{SIX[kind]}.{kind}"
    Path("m/modules.json").write_text(json.dumps(listed))
    Path("m/sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    Path("m/tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    made, _, spec = started("./m")
    assert tuple(made.pooling) == ("mean", True)
    assert spec.preprocessing["length"] == 40, "the network's positions"
    Path("m/tokenizer_config.json").write_text('{"model_max_length": 24}')
    assert started("./m")[2].preprocessing["length"] == 24


def test_a_prompt_is_put_before_each_text(fmeco: Fmeco) -> None:
    """The model's default, one that is named, or any text: in training, in prediction, and by what the checkpoint stores."""
    model("m", "bert")
    sentence("m", {"pooling_mode": "mean"}, max_seq_length=40)
    rewritten("m", "config_sentence_transformers.json", prompts={"query": "the cat: ", "document": None})
    texts(Path("t.jsonl"))
    command = ("finetune", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl", *SHORT)
    assert "prompt" not in fmeco(*command, "--out", "plain").err
    answer = fmeco(*command, "--set", "dataset.prompt_name=query", "--out", "named")
    assert "after the prompt 'the cat: '" in answer.err, answer.err
    assert "dataset.prompt is 'the cat: ', in place of none for these weights" in answer.err
    plain, named = api.load("plain"), api.load("named")
    assert torch.equal(named.read(["a saw"])[0]["tokens"], plain.read(["the cat: a saw"])[0]["tokens"])
    rewritten("m", "config_sentence_transformers.json", default_prompt_name="query")
    answer = fmeco(*command, "--out", "default")
    assert "after the prompt 'the cat: '" in answer.err and "dataset.prompt is" not in answer.err
    assert fmeco(*command, "--set", 'dataset.prompt=""', "--out", "none").code == 0
    assert torch.equal(api.load("none").read(["a saw"])[0]["tokens"], plain.read(["a saw"])[0]["tokens"])
    again = fmeco("finetune", "--from", "named", "--dataset", "t.jsonl", "--set", "dataset.prompt_name=query", *SHORT)
    assert again.code == 0, again.err
    answer = fmeco("finetune", "--from", "named", "--dataset", "t.jsonl", "--set", "dataset.prompt=dog", *SHORT)
    assert answer.code == 2
    assert "dataset.prompt: 'dog': the checkpoint's texts were prepared with 'the cat: '" in answer.err
    answer = fmeco(*command, "--set", "dataset.prompt_name=qery")
    assert answer.code == 2 and "did you mean 'query'" in answer.err and "query, document" in answer.err
    answer = fmeco(*command, "--set", "dataset.prompt=x", "--set", "dataset.pack=true", "--set", "dataset.label=null")
    assert answer.code == 2 and "dataset.pack" in answer.err


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("config_sentence_transformers.json", {"prompts": ["x"]}, "prompts is not a mapping"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts is not a mapping"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name is q, which"),
        ("1_Pooling/config.json", {"include_prompt": False}, "Pooling leaves out the prompt"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "Normalize of the vectors of tokens"),
    ],
)
def test_files_of_sentence_transformers_that_cannot_be_followed(
    name: str, keys: dict[str, Any], message: str, fmeco: Fmeco
) -> None:
    model("m", "bert")
    sentence("m", {"pooling_mode": "mean"}, "Normalize")
    rewritten("m", "config_sentence_transformers.json", prompts={"p": "say "}, default_prompt_name="p")
    Path("m/2_Normalize").mkdir()
    rewritten("m", name, **keys)
    texts(Path("t.jsonl"))
    answer = fmeco("check", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl")
    assert answer.code == 2 and message in answer.err and ".json" in answer.err


@pytest.mark.parametrize("first", ["sentence_transformers.models.StaticEmbedding", "custom_code.Transformer"])
def test_a_first_module_of_another_kind_is_refused_by_name(first: str) -> None:
    model("m", "bert")
    sentence("m", {"pooling_mode": "mean"})
    listed = json.loads(Path("m/modules.json").read_text())
    listed[0]["type"] = first
    Path("m/modules.json").write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match=first.removeprefix("sentence_transformers.models.")):
        started("./m")


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ({"pooling_mode": "mean"}, ["Dense", "Normalize"], "Transformer, Pooling, Dense, Normalize"),
        ({"pooling_mode": ["mean", "max"]}, [], "pooled by mean, max"),
        ({**OLD, "pooling_mode_weightedmean_tokens": True}, [], "pooled by weightedmean"),
        ({"pooling_mode": "attention"}, [], "pooled by attention"),
    ],
)
def test_a_module_that_is_missing_here_is_refused_by_name(
    pooling: dict[str, Any], more: list[str], message: str, fmeco: Fmeco
) -> None:
    model("m", "bert")
    sentence("m", pooling, *more)
    texts(Path("t.jsonl"))
    answer = fmeco("finetune", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl", *SHORT)
    assert answer.code == 2 and message in answer.err and "modules.json" in answer.err


def test_a_module_outside_the_models_folder_is_not_read(fmeco: Fmeco) -> None:
    model("m", "bert")
    sentence("m", {"pooling_mode": "mean"})
    listed = json.loads(Path("m/modules.json").read_text())
    listed[1]["path"] = "../elsewhere"
    Path("m/modules.json").write_text(json.dumps(listed))
    with pytest.raises(ConfigError, match="leaves the model's folder"):
        started("./m")


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_finetuned_checkpoint_needs_no_folder(kind: str, fmeco: Fmeco) -> None:
    model("m", kind, "ForPreTraining")
    texts(Path("t.jsonl"))
    here = Path.cwd()
    answer = fmeco("finetune", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl", "--out", "run", *SHORT)
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    if kind != "gpt2":
        assert "left out, not part of the backbone" in answer.err, "the head of the masked language model is named"
    predicted = fmeco("predict", "run", "cat dog cow", "saw axe drill", "--json").json
    shutil.copytree("run", "killed", symlinks=True)
    shutil.rmtree("killed/checkpoints")
    with contextlib.chdir("/"):  # a run that was stopped before its first checkpoint does need the folder
        answer = fmeco("resume", here / "killed")
        assert answer.code == 0, answer.err
    shutil.move("m", "gone")
    assert fmeco("predict", "run", "cat dog cow", "saw axe drill", "--json").json == predicted
    for command in (
        ("evaluate", "run", "--dataset", "t.jsonl"),
        ("finetune", "--from", "run", "--dataset", "t.jsonl", "--out", "next", *SHORT),
        ("finetune", "--from", "run", "--dataset", "t.jsonl", "--set", "transfer.strategy=probe", *SHORT),
        ("resume", "run", "--epochs", "+1"),
    ):
        answer = fmeco(*command)
        assert answer.code == 0, answer.err

    # The saved backbone is the library's.
    saved = load_file(Path("next/checkpoints/best").resolve() / "backbone.safetensors")
    meta = json.loads((Path("next/checkpoints/best").resolve() / "meta.json").read_text())
    plain = hf.AutoModelForSequenceClassification.from_pretrained("gone").base_model.eval()
    plain.load_state_dict(saved)
    loaded = api.load("next")
    ids = tokenizers.Tokenizer.from_str(meta["spec"]["preprocessing"]["tokenizer"]).encode("the saw and").ids
    with torch.no_grad():
        stored = torch.tensor([ids]) + meta["spec"]["inputs"]["tokens"]["offset"]
        same(loaded.objective.backbone.cpu()({"tokens": stored}).tokens, plain(torch.tensor([ids])).last_hidden_state)


def test_a_text_keeps_its_special_tokens_when_it_is_cut() -> None:
    from fmeco.datasets import _tokens

    words = _tokens.load(tokenizer(BODIES["roberta"][1]).to_str(), "x")
    whole, cut, joined = (_tokens.encode(words, ["the cat and the saw", ""], n) for n in (40, 4, None))
    first, last = 0 + 1, 2 + 1  # <s> and </s>, with the offset
    plain = [i + 1 for i in words.encode("the cat and the saw", add_special_tokens=False).ids]
    assert whole.ids.tolist() == [first, *plain, last]
    assert cut.ids.tolist() == [first, *plain[:2], last]
    assert cut.full[0] == whole.full[0] == len(plain) + 2
    assert lengths(cut.ends) == [4, 0], "an empty text stays empty, and is told"
    assert joined.ids.tolist() == plain
    with pytest.raises(ConfigError, match="leaves no room"):
        _tokens.encode(words, ["a"], 2)


def lengths(ends: Any) -> list[int]:
    return [int(b - a) for a, b in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize(("kind", "objective"), [("roberta", "mask"), ("gpt2", "next")])
def test_objectives_without_labels(kind: str, objective: str, fmeco: Fmeco) -> None:
    model("m", kind)
    texts(Path("t.txt"))
    settings = {
        "dataset": {"name": "text", "path": "t.txt", "pack": objective == "next", "length": 16},
        "backbone": {"name": "hf/./m", "weights": "DEFAULT"},
        "train": {"steps": 30, "batch_size": 16, "tensorboard": False},
        "optimizer": {"name": "adamw", "lr": 0.01},
    }
    run = api.pretrain(settings, out="run")
    assert json.loads((run.checkpoint / "meta.json").read_text())["config"]["objective"]["name"] == objective
    assert run.metrics["val_loss"] < 4.5, "of about 270 ids, blindly guessed, it is 5.6"
    texts(Path("t.jsonl"))
    answer = fmeco("finetune", "--from", "run", "--dataset", "t.jsonl", *SHORT)
    assert answer.code == 0, answer.err
    shutil.move("m", "gone")
    assert api.load("run").objective.backbone.width == 32, "a backbone that a config names is in the checkpoint, too"
    shutil.move("gone", "m")
    other = "next" if objective == "mask" else "mask"
    with pytest.raises(ConfigError, match=f"objective {other} needs"):
        api.pretrain({**settings, "objective": other}, out="other")


def test_a_hidden_token_is_not_seen() -> None:
    model("m", "roberta")
    made, _, _ = started("./m")
    one = torch.tensor([[1, 9, 20, 30, 3, 0]])
    other = one.clone()
    other[0, 2] = 50
    hidden = torch.zeros_like(one, dtype=torch.bool)
    hidden[0, 2] = True
    with torch.no_grad():
        a, b = (made({"tokens": x, "hidden": hidden, "blank": torch.ones(32)}).tokens for x in (one, other))
        assert torch.equal(a, b)
        nothing = made({"tokens": one, "hidden": hidden & False, "blank": torch.ones(32)}).tokens
        same(nothing[:, :5], made({"tokens": one}).tokens[:, :5])


def test_a_tokenizer_of_another_size_is_refused_and_one_of_its_own_may_be_smaller() -> None:
    model("m", "bert", vocab_size=320)
    made, _, spec = started("./m")
    assert made.vocabulary == spec.preprocessing["ids"] == 320
    texts(Path("t.jsonl"))
    settings = {
        "dataset": {"name": "text", "path": "t.jsonl"},
        "backbone": {"name": "hf/./m"},
        "train": {"epochs": 1, "tensorboard": False},
    }
    with pytest.raises(ConfigError, match="embeddings of 320 ids, and the tokenizer has") as caught:
        api.pretrain(settings, out="run")
    learned = int(caught.value.message.split()[-1])
    settings["backbone"]["options"] = {"vocab_size": learned}
    with pytest.raises(
        ConfigError, match=r"cannot be built for tokens \(128,"
    ):  # the default length is more than it has
        api.pretrain(settings, out="run")
    settings["dataset"]["length"] = 40
    assert api.pretrain(settings, out="run").run.is_dir()
    model("n", "bert", vocab_size=100)
    with pytest.raises(ConfigError, match=r"tokenizer.json has \d+ ids, and the model has embeddings of 100"):
        started("./n")


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("kind", list(IMAGES))
def test_an_image_gives_what_the_librarys_own_classifier_reads(kind: str) -> None:
    plain = model("m", kind, "ForImageClassification", num_labels=5)
    made, report, spec = started("./m")
    assert report.share == 1.0
    assert not report.missing
    assert set(report.left_out) == {name for name in load_file("m/model.safetensors") if name.startswith("classifier")}
    assert spec.inputs["image"] == InputSpec((3, 32, 32), "uint8", 1 / 255, (0.4,) * 3, (0.3,) * 3)
    assert spec.preprocessing["interpolation"] == "bicubic"
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, body = made({"image": x}), plain.base_model(x)
        wanted = body.last_hidden_state
        if kind == "dinov2":
            same(found.pooled, body.pooler_output)
        else:
            same(plain.classifier(found.pooled), plain(x).logits)
        patches = wanted.flatten(2).transpose(1, 2) if wanted.ndim == 4 else wanted[:, -found.tokens.shape[1] :]
        same(found.tokens, patches)
    assert found.grid == {"convnext": (4, 4), "resnet": (4, 4), "swin": None}.get(kind, (4, 4))
    assert found.grid is None or found.grid[0] * found.grid[1] == found.tokens.shape[1]


def test_images_of_another_size_and_one_channel(fmeco: Fmeco) -> None:
    model("m", "vit")  # with a pooler, which its classifier goes without
    theirs = load_file("m/model.safetensors")
    made, report, _ = started("./m", image(48, 1))
    assert {"pooler.dense.weight", "pooler.dense.bias"} == set(report.left_out)
    assert report.reshaped == ["embeddings.patch_embeddings.projection.weight"]
    gray = theirs["embeddings.patch_embeddings.projection.weight"].sum(1, keepdim=True)
    same(made.library.state_dict()["embeddings.patch_embeddings.projection.weight"], gray)
    with torch.no_grad():
        found = made({"image": torch.zeros(2, 1, 48, 48)})
    assert found.grid == (6, 6)
    photos(Path("p"), each=5)
    answer = fmeco("finetune", "--from", "hf/./m@DEFAULT", "--dataset", "p", "--out", "run", *SHORT)
    assert answer.code == 0, answer.err
    assert "32 pixels from 32 squashed, bicubic, rgb, mean 0.4, std 0.3" in answer.err
    shutil.rmtree("m")
    assert fmeco("predict", "run", "p/red/00.png").code == 0


@pytest.mark.parametrize("kind", list(IMAGES))
def test_feature_maps_are_the_librarys_own_hidden_states(kind: str) -> None:
    """Of the stages of a network that has some, and else a pyramid of the patches."""
    model("m", kind)
    made, _, _ = started("./m")
    staged = kind in ("convnext", "swin", "resnet")
    assert made.map_strides == ((4, 8) if staged else (4, 8, 16, 32))
    assert made.map_widths == ((8, 16) if staged else (32,) * 4)
    x = {"image": torch.randn(2, 3, 32, 32)}
    net: Any = made.net
    with torch.no_grad():
        maps = made.maps(x)
        assert [tuple(one.shape[2:]) for one in maps] == [(32 // stride,) * 2 for stride in made.map_strides]
        if kind == "swin":  # its stages halve the map at their end
            states = net.encoder(
                *net.embeddings(x["image"]),
                output_hidden_states=True,
                output_hidden_states_before_downsampling=True,
            ).reshaped_hidden_states
            assert torch.equal(maps[0], states[1])
            assert torch.equal(maps[1].flatten(2).transpose(1, 2), net(x["image"]).last_hidden_state)
        elif staged:
            states = net(x["image"], output_hidden_states=True).hidden_states
            assert all(map(torch.equal, maps, states[-2:]))
        else:
            tokens = net(x["image"]).last_hidden_state[:, -16:]
            assert torch.equal(maps[1].flatten(2).transpose(1, 2), tokens)


# ---------------------------------------------------------------- speech

HEARS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [24, 24, 24, 24],
    "conv_kernel": [10, 3, 3, 3],
    "conv_stride": [5, 4, 4, 2],  # a step of 20 ms at 8 kHz
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
}


def hearing(kind: str, head: str = "", normal: bool = True, **changes: Any) -> Any:
    """A random encoder of waveforms in the folder m, as its save_pretrained writes it, and how it is fed."""
    torch.manual_seed(3)
    made = getattr(hf, f"AutoModel{head}").from_config(hf.AutoConfig.for_model(kind, **HEARS, **changes)).eval()
    made.save_pretrained("m")
    hf.Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=normal).save_pretrained("m")
    return made


def build_audio(known: Any = None, **keys: Any) -> Any:
    return build_data(known=known, name="audio", **keys)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"])
def test_a_recording_gives_what_the_library_gives_of_it_alone(kind: str, norm: str) -> None:
    plain = hearing(kind, "ForCTC", feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    old = {"original0": "weight_g", "original1": "weight_v"}  # as files of the hub have it
    state = {re.sub(r"parametrizations\.weight\.(original\d)", lambda m: old[m[1]], k): v for k, v in load_file("m/model.safetensors").items()}  # fmt: skip
    assert any(name.endswith("weight_g") for name in state)
    save_file(state, "m/model.safetensors")
    made, report, spec = started("./m")
    assert report.share == 1.0
    assert not report.missing
    assert {name.rpartition(".")[0] or name for name in report.left_out} - {"masked_spec_embed"} == {"lm_head"}
    assert spec.preprocessing["sample_rate"] == 8000
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (900, 4000, 2500)]
    with torch.no_grad():
        found = made({"waveform": torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)})
        for i, wave in enumerate(waves):
            same(found.tokens[i][found.mask[i]], plain.base_model(wave[None]).last_hidden_state[0])
        short = made({"waveform": torch.ones(2, 3)})
    assert short.mask.tolist() == [[True], [True]], "what is shorter than a step is filled up to one"
    made.train()
    made({"waveform": torch.stack([waves[1]] * 2)}).tokens.sum().backward()
    assert all(p.grad is not None for p in made.parameters()), "no parameter is left out while training"


def test_a_waveform_is_what_the_librarys_feature_extractor_makes() -> None:
    tones(Path("t"), each=4)
    for normal in (True, False):
        hearing("wav2vec2", normal=normal)
        _, _, spec = started("./m")
        data = build_audio(known=spec, path="t", seconds=0.3)
        assert data.spec.inputs == {"waveform": InputSpec((2400,), ragged=True)}
        extract = hf.AutoFeatureExtractor.from_pretrained("m")
        lengths = []
        for i in range(len(data.train)):
            raw, rate = soundfile.read(f"t/{data.train.name(i)}", dtype="float32")
            wave = data.train[i]["waveform"]
            same(wave, torch.tensor(extract(raw, sampling_rate=rate).input_values[0]))
            assert bool(wave.ne(0).all())
            lengths.append(len(wave))
        assert max(lengths) > 2400
        assert data.train.lengths is None, "files of a size are often files of a class"
        assert not data.notes
    assert (
        "most recordings are longer than dataset.seconds, 0.1"
        in build_audio(known=spec, path="t", seconds=0.1).notes[-1]
    )
    soundfile.write("t/low/ann_00.wav", np.concatenate([np.full(800, 0.1), np.zeros(1600)]), 8000)
    quiet = build_audio(path="t", input="waveform", loudness=False, val_fraction=0.5, sample_rate=8000)
    at = [(part, i) for part in (quiet.train, quiet.val) for i in range(len(part)) if part.name(i) == "low/ann_00.wav"]
    assert bool(at[0][0][at[0][1]]["waveform"].ne(0).all()), "its own silence is not what a batch is filled up with"
    with pytest.raises(ConfigError, match=r"dataset.mels: is for spectrograms"):
        build_audio(path="t", input="waveform", mels=8)
    with pytest.raises(ConfigError, match=r"dataset.input: spectrogram: the checkpoint was trained with waveform"):
        build_audio(known=spec, path="t", input="spectrogram")
    with pytest.raises(ConfigError, match=r"dataset.sample_rate: 16000: the checkpoint was trained with 8000"):
        build_audio(known=spec, path="t", sample_rate=16000)
    one = fit(data.train[lengths.index(max(lengths))], data.spec)["waveform"]
    whole, start = data.train[lengths.index(max(lengths))]["waveform"], (max(lengths) - 2400) // 2
    assert torch.equal(one, whole[start : start + 2400]), "evaluation hears the middle"
    masks = choose("augment", "specaugment").plugin.build(
        {"spec": data.spec, "arch": "specaugment"}, {"masks": 1, "frequency": 0.0, "time": 0.5}
    )
    heard = [masks.sample({"waveform": whole}, key)["waveform"] for key in (1, 1, 2)]
    assert len(heard[0]) == 2400 and torch.equal(heard[0], heard[1]) and not torch.equal(heard[0], heard[2])
    assert 0 < int(heard[0].eq(1e-3).sum()) < 1300


def test_what_was_said_and_by_an_encoder_of_a_folder(fmeco: Fmeco) -> None:
    said = sayings()
    spoken(said)
    hearing("wav2vec2")
    settings = {
        "dataset": {"name": "audio", "path": "t.csv", "task": "text", "speaker": "who", "seconds": 0.6},
        "augment": {"name": "specaugment", "time": 0.05},
        "optimizer": {"name": "adamw", "lr": 0.004},
        "train": {"epochs": 40, "batch_size": 8, "tensorboard": False, "precision": "fp32"},
        "transfer": "full",
        "evaluate": {"every": 20},
    }
    answer = fmeco("finetune", write("c.yaml", settings), "--from", "hf/./m@DEFAULT", "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert "waveforms of 8000 Hz, each of mean 0 and deviation 1" in answer.err
    assert answer.json["metrics"]["val_cer"] < 0.3
    shutil.move("m", "gone")
    alone = [fmeco("predict", "run", f"wav/00{i}.wav", "--json").json["predictions"][0] for i in range(4)]
    rows = fmeco("predict", "run", "wav", "--json").json["predictions"][:4]
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in alone]
    assert [row["probability"] for row in rows] == pytest.approx([row["probability"] for row in alone], rel=1e-3)
    assert sum(row["prediction"] == text for row, text in zip(rows, said, strict=False)) >= 2
    assert api.load("run").objective.backbone.alone
    answer = fmeco("evaluate", "run", "--set", "dataset.seconds=1")
    assert answer.code == 2 and "this checkpoint was trained on at most 0.6 s" in answer.err
    tones(Path("folder"))
    for strategy in ("full", "probe"):
        answer = fmeco("finetune", "--from", "run", "--dataset", "folder", "--out", strategy, "--set", f"transfer.strategy={strategy}", *SHORT)  # fmt: skip
        assert answer.code == 0, answer.err
    assert fmeco("resume", "full", "--epochs", "+1").code == 0
    settings.pop("transfer")
    heard = {**settings["dataset"], "input": "waveform"}
    for changes, told in (
        ({"backbone": "hf/./gone"}, "takes waveforms; this dataset has spectrogram"),
        ({"backbone": "cnn", "dataset": heard}, "this dataset has waveform\n  hint: speech encoders of hf/"),
    ):
        answer = fmeco("pretrain", write("c.yaml", {**settings, **changes}), "--out", "x")
        assert answer.code == 2 and told in answer.err
    Path("gone/preprocessor_config.json").write_text('{"sampling_rate": "fast"}')
    with pytest.raises(
        ConfigError, match=r"preprocessor_config\.json: not a valid audio preprocessing: sampling_rate fast"
    ):
        started("./gone")
    Path("gone/preprocessor_config.json").write_text('{"do_normalize": null}')
    with pytest.raises(ConfigError, match="not a valid audio preprocessing: do_normalize None"):
        started("./gone")
    shutil.move("gone", "m")
    for key in ("add_adapter", "conv_pos_batch_norm"):
        spoil(**{"model_type": "hubert", "add_adapter": False, key: True})
        with pytest.raises(ConfigError, match=key):
            started("./m")


# ---------------------------------------------------------------- what comes from a stranger


def spoil(**changes: Any) -> None:
    path = Path("m/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_config_chooses_no_kernel_and_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model("m", "bert")
    _, _, spec = started("./m")
    hub = importlib.import_module("transformers.integrations.hub_kernels")
    monkeypatch.setattr(hub, "load_and_register_attn_kernel", lambda *_, **__: pytest.fail("a kernel was asked for"))
    for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
        spoil(**{key: "someone/kernel"})
    spoil(_experts_implementation="someone/kernel", _name_or_path="someone/else", architectures=["Evil"])
    made, _, _ = started("./m")
    assert made.net.config._attn_implementation == "sdpa"
    choice = choose("backbone", "hf/./m")
    kept = choice.plugin.load().complete("./m", dict(choice.options))["config"]
    assert "someone" not in kept and "Evil" not in kept
    # A checkpoint's config is no more trusted than a folder's.
    hostile = json.dumps({**json.loads(kept), "_attn_implementation": "someone/kernel"})
    assert build("./gone", spec, config=hostile).net.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match="auto_map: it names code"):
        build("./gone", spec, config=json.dumps({**json.loads(kept), "auto_map": {"AutoModel": "x--y.Z"}}))
    described = hf.AutoConfig.for_model("bert", **SMALL, vocab_size=50, attn_implementation="someone/kernel")
    assert network(described, "text").config._attn_implementation == "sdpa", "nor does an object"
    with pytest.raises(ConfigError, match="no '_attn_implementation' to change"):
        build("./m", spec, options={"_attn_implementation": "someone/kernel"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "someone/repo--m.Model"}}, "m/config.json: auto_map"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"vision_config": {"model_type": "vit"}}, "several models"),
        ({"model_type": "bart"}, "an encoder-decoder"),
        ({"model_type": "clip"}, "several models"),
        ({"model_type": "encodec"}, "not a model that turns a text, an image or a waveform"),
        ({"model_type": "timm_wrapper"}, "not a model that turns a text, an image or a waveform"),
        ({"model_type": "bertt"}, "has no model_type 'bertt'"),
        ({"model_type": None}, "no model_type"),
        ({"hidden_size": "many"}, "not a valid config of bert"),
        ({"num_attention_heads": 5}, "hf/./m cannot be built"),
        ({"to_dict": 3, "forward": "x", "get_text_config": 1}, "hf/./m"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str, fmeco: Fmeco) -> None:
    model("m", "bert")
    texts(Path("t.jsonl"))
    spoil(**changes)
    answer = fmeco("finetune", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl", *SHORT)
    assert answer.code == 2, answer.err
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_files_that_are_missing_or_broken(fmeco: Fmeco) -> None:
    texts(Path("t.jsonl"))
    model("m", "bert")
    body = Path("m/config.json").read_text()

    def refused(message: str, ref: str = "hf/./m@DEFAULT", code: int = 2) -> None:
        answer = fmeco("finetune", "--from", ref, "--dataset", "t.jsonl", *SHORT)
        assert answer.code == code, answer.err
        assert message in answer.err

    for content in (body[:40], "[]", "[" * 100_000, " " * (5 << 20)):
        Path("m/config.json").write_text(content)
        refused("m/config.json")
    Path("m/config.json").unlink()
    refused("m/config.json: no such file")
    refused("no such folder", "hf/./gone@DEFAULT")
    refused("not a valid model name of the hub", "hf/some/where/else@DEFAULT")
    refused("'hf' needs an architecture or dataset", "hf@DEFAULT")
    Path("m/config.json").write_text(body)
    refused("it has: DEFAULT", "hf/./m@main")
    tokens = Path("m/tokenizer.json").read_text()
    Path("m/tokenizer.json").write_text(tokens[:100])
    refused("m/tokenizer.json: not a valid file of the package tokenizers")
    Path("m/tokenizer.json").write_text(tokens)
    state = load_file("m/model.safetensors")
    save_file(
        {name.replace("encoder.layer.1.", "encoder.layer.7."): t for name, t in state.items()}, "m/model.safetensors"
    )
    refused("does not fit this backbone", code=4)
    Path("m/model.safetensors").write_bytes(b"half")
    refused("not a valid safetensors file", code=4)
    Path("m/model.safetensors").unlink()
    refused("m/model.safetensors: no such file")
    torch.save(state, "m/pytorch_model.bin")
    answer = fmeco("finetune", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl", *SHORT)
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    Path("m/pytorch_model.bin").write_bytes(__import__("pickle").dumps(print))
    refused("pytorch_model.bin cannot be read", code=4)


def test_older_names_and_buffers_are_the_librarys_to_translate() -> None:
    plain = model("m", "bert")
    state = load_file("m/model.safetensors")
    old = {
        f"bert.{name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')}": t
        for name, t in state.items()
    }
    old |= {"bert.embeddings.position_ids": torch.arange(40)[None], "cls.predictions.bias": torch.zeros(3)}
    save_file(old, "m/model.safetensors")
    made, report, _ = started("./m")
    assert report.share == 1.0
    assert sorted(report.left_out) == ["cls.predictions.bias", "embeddings.position_ids"]
    ids = torch.tensor([[2, 9, 8, 3]])
    with torch.no_grad():
        same(made({"tokens": ids}).tokens, plain(ids).last_hidden_state)
    save_file({**old, "bert.encoder.extra": torch.zeros(2)}, "m/model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)without a place.*encoder\.extra \(2,\)"):
        started("./m")


def test_shards_of_bin_train_and_embed_and_a_run_of_a_folder_has_controls(fmeco: Fmeco) -> None:
    model("m", "bert")
    whole = load_file("m/model.safetensors")
    names = list(whole)
    files = {"pytorch_model-1.bin": names[:9], "pytorch_model-2.bin": names[9:]}
    for file, part in files.items():
        torch.save({name: whole[name] for name in part}, f"m/{file}")
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    Path("m/pytorch_model.bin.index.json").write_text(json.dumps(index))
    Path("m/model.safetensors").unlink()
    texts(Path("t.jsonl"))
    short = ("--dataset", "t.jsonl", "--set", "train.steps=2", "--set", "train.batch_size=8")
    answer = fmeco("finetune", "--from", "hf/./m@DEFAULT", *short, "--set", "backbone.pooling=mean", "--out", "run")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    section = yaml.safe_load(Path("run/config.yaml").read_text())["backbone"]
    assert section["pooling"] == "mean"
    answer = fmeco("finetune", "--from", "run", *short, "--control", "scratch", "--out", "again")
    assert answer.code == 0, answer.err
    answer = fmeco("embed", "m", "--dataset", "t.jsonl", "--output", "e.npz")
    assert answer.code == 2
    assert "hf/./m@DEFAULT knows its architecture" in answer.err
    for ref, *given in (("hf/./m@DEFAULT",), ("m", "--set", "backbone=hf/./m")):
        answer = fmeco("embed", ref, "--dataset", "t.jsonl", "--output", "e.npz", "--force", *given)
        assert answer.code == 0, answer.err
        features = torch.from_numpy(np.load("e.npz")["features"])
        rows = [json.loads(line)["text"] for line in Path("t.jsonl").read_text().splitlines()]
        assert features.shape == (len(rows), 32)
    assert fmeco("info", "hf/./m@DEFAULT", "--json").json["tensors"] == len(whole)
    shown = fmeco("info", "m", "--json").json
    assert (shown["tensors"], shown["format"]) == (len(whole), "2 shards with an index")


def test_a_hub_serves_shards_and_a_licence(server: str, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on this machine stands in for the hub."""
    from fmeco.backbones import _hf_published as plugin

    monkeypatch.setattr(plugin, "HUB", server + "hub/{}/resolve/main/{}")
    folder = Path("hub/someone/tiny.bert/resolve/main")
    model(str(folder), "bert", "ForPreTraining")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: state[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    texts(Path("t.jsonl"))
    command = ("finetune", "--from", "hf/someone/tiny.bert@DEFAULT", "--dataset", "t.jsonl", *SHORT)
    answer = fmeco(*command, "--out", "run")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    assert answer.err.count("no hash to compare with; SHA-256") == 2
    assert fmeco("info", "run", "--json").json["licence"] == "apache-2.0"
    shutil.rmtree("hub")
    assert fmeco(*command).code == 0, "what is here is not downloaded again"
    shutil.rmtree("torch-home")
    answer = fmeco("predict", "run", "cat dog")
    assert answer.code == 0, answer.err
    answer = fmeco(*command)
    assert answer.code == 2
    assert "config.json: no such file" in answer.err
    index["weight_map"] = {"x": "../secret.safetensors"}
    model("m", "bert")
    Path("m/model.safetensors").unlink()
    Path("m/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"weight_map must name \.safetensors files of the same folder"):
        started("./m")


# ---------------------------------------------------------------- without the library


def test_naming_and_listing_import_nothing_and_a_run_says_what_to_install(
    fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)  # what importing it raises then is an ImportError
    assert "hf/./FOLDER" in fmeco("list", "backbones").out
    assert "pooling" in fmeco("describe", "backbones", "hf").out
    assert fmeco("describe", "backbones", "hf/google/vit-base-patch16-224").code == 0
    assert choose("backbone", "hf/google/vit-base-patch16-224").arch == "google/vit-base-patch16-224"
    assert choose("backbone", "hf//a/b").arch == "/a/b"
    Path("m").mkdir()
    Path("m/config.json").write_text('{"model_type": "bert"}')
    texts(Path("t.jsonl"))
    answer = fmeco("check", "--from", "hf/./m@DEFAULT", "--dataset", "t.jsonl")
    assert answer.code == 2
    assert "pip install 'fmeco[hf]'" in answer.err


def test_a_table_is_read_as_what_the_published_weights_take(fmeco: Fmeco) -> None:
    model("m", "bert")
    rows = ["text,label", *(f"the {'cat' if i % 2 else 'saw'} {i},{'ab'[i % 2]}" for i in range(40))]
    for path in ("t.csv", "folder/train.csv", "folder/test.csv"):
        write(path, "\n".join(rows) + "\n")
    assert fmeco("fetch", "hf/./m@DEFAULT", "--out", "carried").code == 0
    for ref, dataset in [("hf/./m@DEFAULT", "t.csv"), ("hf/./m@DEFAULT", "folder"), ("carried", "t.csv")]:
        answer = fmeco("probe", ref, "--dataset", dataset)
        assert answer.code == 0, (ref, dataset, answer.err)
        assert "inputs: a tokenizer of" in answer.err
    wrong = fmeco("probe", "hf/./none@DEFAULT", "--dataset", "t.csv")
    assert wrong.code == 2 and "hf/./none: no such folder" in wrong.err, "what is wrong with the REF is said"
