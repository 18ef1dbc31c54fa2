"""Each check of `python -m fmeco.testing` finds a plug-in that breaks its promise, and says so in one line.

The plug-ins are those of docs/plugins.md, each with one change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmeco.plugins import registry
from fmeco.testing import bench
from fmeco.testing.check_plugin import check_plugin

from ..conftest import write
from .test_check_plugin import documented

# (the documentation's file, what is replaced, by what, the line that says it)
DATASET = [
    ('MODALITY = "dna"', 'MODALITY = "rna"', "description: MODALITY is 'rna', and spec.modality 'dna'"),
    (
        'reader="dna",',
        'reader="dna", fingerprint=str(torch.rand(())),',
        "description: two builds with the same keys differ in spec.fingerprint",
    ),
    ('{"bases": BASES},', '{"bases": tuple(BASES)},', "spec.preprocessing changes when it is stored as JSON"),
    ('{"bases": BASES},', '{"bases": torch.ones(2).numpy()},', "the spec cannot be stored as JSON"),
    ('"train": len(parts[0])', '"train": 7', "description: spec.sizes['train'] is 7, and the split has 96 samples"),
    ('return {"bases": torch', 'return {"base": torch', "samples: train sample 0 has the inputs base; spec.inputs says bases"),
    ('"int64", ragged=True', '"int64"', "the model expects (64,); a dimension 0 that varies is `ragged`"),
    ('"int64", ragged=True', '"int32", ragged=True', "samples: train sample 0: 'bases' is torch.int64; spec.inputs says int32"),
    ("torch.tensor([len(read)", "torch.tensor([1 + len(read)", "samples: train sample 0: Samples.lengths says 17; it has 16"),
    (
        "self.reads, self.names = reads, names",
        "self.reads, self.names = reads, names\n        self.tensors = {'bases': torch.zeros(200, 64, dtype=torch.int64)}",
        "samples: train sample 0: Samples.tensors['bases'] is not what reading gives",
    ),
    (
        "for base in self.reads[index]])}",
        "for base in self.reads[index]]) * torch.randint(9, ())}",
        "reading again: train sample 88: 'bases' is another one when it is read again, in another order",
    ),
    (
        'return {"bases": torch.tensor([BASES.index(base) for base in self.reads[index]])}',
        "self.last = getattr(self, 'last', torch.zeros(64, dtype=torch.int64))\n"
        "        self.last[: len(self.reads[index])] = torch.tensor([BASES.index(base) for base in self.reads[index]])\n"
        '        return {"bases": self.last[: len(self.reads[index])]}',
        "'bases' changed while other samples were read: they share memory",
    ),
    (
        'return {"bases": torch',
        "import time\n        self.at = index\n        time.sleep(1e-3)\n        index = self.at\n"
        '        return {"bases": torch',
        "'bases' is another one when two threads read at once",
    ),
    ("return self.names[index]", "return self.names[index - index % 2]", "names: two train samples have the name"),
    (
        "return self.names[index]",
        "return self.names[index] + str(id(self))",
        "names: the train samples have other names when the dataset is built again",
    ),
    ("return self.names[index]", 'return f"{index}"', "splits: '0' is in two splits, train and val"),
    ('"label": torch.tensor(labels)}', '"label": torch.tensor(labels).float()}', "targets: 'label' of the train samples, of kind class, needs an int64 tensor"),
    ('"label": torch.tensor(labels)}', '"label": torch.tensor(labels) + 1}', "needs an int64 tensor (N,) with numbers from 0 to 1"),
    ('"label": torch.tensor(labels)}', '"label": torch.tensor(labels)[1:]}', "have 95 values of 'label' for 96 samples"),
    ('else {"label"', 'else {"other"', "targets: the train samples have no target 'label', which spec.targets has"),
    (
        "longest = length or (known.inputs[\"bases\"].shape[0] if known is not None else 64)",
        "longest = length or (32 if known is not None else 64)",
        "preparing as a checkpoint did: with `known`, the spec of a checkpoint of the same data, spec.inputs is another one",
    ),
    ("def read(", "def reads(", "read: spec.reader names this plug-in, whose file has no function read"),
    ('reader="dna",', "", "read: the file has a function read, and spec.reader does not name it"),
    ("return Reads([row[0][:longest] for", "return Reads([row[0][:longest][::-1] for", "gives another 'bases' than the dataset"),
    ("    return Data(spec, *parts)", "    return spec", "build: build() must return core.Data, not DataSpec"),
    ("def example(", "def examples(", "build: keys without a default: path; give them with --set KEY=VALUE, or let a function example"),
]  # fmt: skip
BACKBONE = [
    ("self.width = width", "self.width = 2 * width", "output for dna: the vector is (4, 32); width 64 promises (4, 64)"),
    ("mask=bases != 0)", "mask=bases)", "output for dna: Features.mask must be bool"),
    ("tokens = self", "tokens = float('nan') * self", "output for dna: the vector is not finite"),
    (".relu().transpose(1, 2)", ".relu().transpose(1, 2).double()", "output for dna: the vector is torch.float64"),
    ("return Features(tokens=tokens", "return dict(tokens=tokens", "forward() must return core.Features, not dict"),
    (
        "self.embedding = ",
        "self.spare = nn.Linear(2, 2)\n        self.embedding = ",
        "gradient for dna: no gradient reaches spare.weight, spare.bias",
    ),
    (
        "nn.Embedding(bases, width, padding_idx=0)",
        "nn.Sequential(nn.Embedding(bases, width, padding_idx=0), nn.RReLU(r := __import__('random').random(), r))",
        "state dict for dna: a model that loads the state dict computes something else",
    ),
    (
        "self.embedding = ",
        "import torch\n        setattr(self, f'part{torch.randint(1 << 40, ())}', nn.BatchNorm1d(1, affine=False))\n        self.embedding = ",
        "state dict for dna: two builds have other names in their state dict",
    ),
    ("tokens = self", "x = nn.functional.dropout(x)\n        tokens = self", "evaluation for dna: in evaluation mode the same inputs give another vector"),
    (
        "    def forward(self, inputs: Inputs) -> Features:",
        "        self.register_buffer('seen', self.embedding.weight.detach()[0].clone())\n\n"
        "    def forward(self, inputs: Inputs) -> Features:\n        self.seen.add_(1)",
        "evaluation for dna: in evaluation mode a forward pass changes seen",
    ),
    (", mask=bases != 0)", ")", "one sample for dna: the vector of sample 0 is another one in a batch of 4 than alone; padding"),
    (
        "    def forward",
        "    def depth_of(self, name):\n        return {'embedding.weight': 0}[name]\n\n    def forward",
        "depth_of for dna: depth_of('convolution.weight') fails: KeyError",
    ),
    ('if "bases" not in spec.inputs', "if False", "build: build() fails for fake_images: KeyError: 'bases'; raise core.ConfigError"),
    ("    return Motifs(", "    return nn.Linear(", "build() must return a core.Backbone, not Linear"),
]  # fmt: skip
OBJECTIVE = [
    (".clamp_min(0).sum(), len(batch))", ".clamp_min(0).mean(), 1.0)", "parts of a batch: Loss.count of a batch is 1, and its halves count 2"),
    (".clamp_min(0).sum(), len(batch))", ".clamp_min(0).mean(), len(batch))", "parts of a batch: Loss.sum of a batch is"),
    (".clamp_min(0).sum(), len(batch))", ".clamp_min(0).sum(), 0)", "its own targets): Loss.count is 0.0"),
    (".clamp_min(0).sum(), len(batch))", ".clamp_min(0).sum().detach(), len(batch))", "Loss.sum must be a tensor without dimensions that gradients flow from"),
    (".clamp_min(0).sum(), len(batch))", ".clamp_min(0).sum() / 0, len(batch))", "its own targets): the loss of a batch is inf"),
    ("        return Loss(", "        return tuple(", "loss: TypeError: tuple expected at most 1 argument, got 2 (hinge.py"),
    ('return {"score": self.score(batch), "label"', 'return {"score": self.score(batch)[1:], "label"', "rows and metrics: rows()['score'] has 7 rows for 8 samples"),
    ('{"accuracy": "max"}', "{}", "rows and metrics: `directions` is empty"),
    ('{"accuracy": "max"}', '{"accuracy": "up"}', "rows and metrics: directions['accuracy'] must be 'max' or 'min'"),
    ('{"accuracy": "max"}', '{"f1": "max"}', "rows and metrics: metrics() has no 'f1', the first of `directions`"),
    ('return {"accuracy":', 'return {"loss": 0.0, "accuracy":', "rows and metrics: `directions` does not say of 'loss' whether"),
    ("    def predict", "    def correct(self, rows):\n        return rows['label'] < 2\n\n    def predict", "rows and metrics: the share of correct(rows) is"),
    ('float(((rows["score"]', '__import__("random").random() + float(((rows["score"]', "metrics() of the same rows gives another 'accuracy' the second time"),
    ('in outputs["score"]]', 'in outputs["score"][1:]]', "predictions: decode() gives 7 answers for 8 samples"),
    ('{"prediction":', '{"answer":', "predictions: decode(), or told(), gives an answer without the key 'prediction'"),
    ('"score": float(score)}', '"score": score}', "predictions: decode(), or told(), gives an answer that is no JSON: Tensor"),
    ("    def predict", "    def class_rows(self):\n        return {'head.weight': self.classes}\n\n    def predict", "state dict: class_rows(): 'head.weight' is no parameter with a row for each of 2 classes"),
    ("self.head = nn.Linear", "self.spare = nn.Linear(2, 2)\n        self.head = nn.Linear", "20 steps: no gradient reaches spare.weight, spare.bias"),
    ("(self.margin - side", "(self.margin + 0 * side", "20 steps: the loss of one batch went from 1 to 1 in 20 steps on it"),
    ("if len(classes) != 2:", "if True:", "build: it takes none of the data there is (the objective hinge is for a target"),
]  # fmt: skip
AUGMENT = [
    ("inputs[\"bases\"].flip(0)}", "inputs[\"bases\"].flip(0).float()}", "shapes and types of dna: 'bases' becomes torch.float32; it is stored as torch.int64"),
    ('{**inputs, "bases": 5', '{"base": 5', "KeyError: 'bases'"),
    ("torch.tensor([key]), stream=0)", "torch.randint(1 << 40, (1,)), stream=0)", "sample(inputs, key) of dna: sample(inputs, key) gives another 'bases' the second time"),
    ("5 - inputs[\"bases\"].flip(0)}", "inputs[\"bases\"].neg_().add_(5)}", "sample(inputs, key) writes into its input 'bases'"),
    ("return {**inputs, \"bases\": 5 - inputs[\"bases\"].flip(0)}", "return inputs", "variety of dna: 16 different keys give the same inputs"),
    ("    def sample(", "    def batch(self, inputs, keys):\n        return {**inputs, 'bases': inputs['bases'] + 1}\n\n    def sample(", "batch(inputs, keys) fills the padding of 'bases'"),
    ('return "reverse" if', 'return "other" if', "build: default() returns 'other', which is no name of this plug-in"),
]  # fmt: skip
OPTIMIZER = [
    ("return Lion(params,", "for group in params:\n        group['lr'] = lr * group['scale']\n    return Lion(params,", "rates: with a scale of 0.5 for its first layer, 0.weight has the rate"),
    ("return Lion(params,", "params[0]['params'].pop()\n    params[0]['names'].pop()\n    return Lion(params,", "the optimizer that build() returns would not train 0.weight"),
    ("return Lion(params,", "return dict(params=", "build() must return a torch.optim.Optimizer"),
    ("p.add_(average.lerp(p.grad, 0.1).sign(), alpha=-group[\"lr\"])", "pass", "a step: a step does not move"),
    ("alpha=-group[\"lr\"]", "alpha=-1e-3", "a step: a step at lr 0 moves"),
    ("self.state[p].setdefault", "self.__dict__.setdefault('own', {}).setdefault(p, {}).setdefault", "saving and loading: after loading its state"),
    ("average = self.state", "self.state[p]['kept'] = {1, 2}\n                    average = self.state", "saving and loading: optimizer: the state of Lion cannot be saved: 'kept' of a parameter's state is a set"),
]  # fmt: skip
SCHEDULE = [
    ("return min(", "return -min(", "over a run: step 0 of 100: the factor on the learning rate is -0.001"),
    ("return min(", "return 1 / step if step else float('inf')  # (", "over a run: step 0 of 100: the factor on the learning rate is inf"),
    ("return min(", "return 0.0  # min(", "over a run: the factor on the learning rate is 0 at every step"),
    ("return min(", "return str  # min(", "over a run: step 0 of 100: it must return a number, not type"),
    ("return min(", "import random\n    return random.random() + min(", "twice the same: step 50 of 100: another factor the second time"),
]  # fmt: skip
STRATEGY = [
    ("for name, role in roles.items()}", "for name, role in roles.items() if role.depth}", "build: surgical.py: phase 1 gives no scale for"),
    ("    return Transfer(", "    scales['x'] = 1.0\n    return Transfer(", "build: surgical.py: phase 1 gives a scale for x, but the model has no such parameter"),
    ("float(role.depth is None", "-float(role.depth is None", "build: transfer.strategy: the scale of"),
    ("Phase(scales),", "Phase(scales, 0.0),", "build: transfer.strategy: the share of a phase is 0.0"),
    ("(Phase(scales),)", "()", "build: surgical.py: build() must return Transfer("),
    ("float(role.depth is None", "0 * float(role.depth is None", "what is trained: phase 1 trains nothing: every scale is 0"),
    ("return Transfer((Phase(scales),))", "return scales", "build: surgical.py: build() must return Transfer("),
]  # fmt: skip
BROKEN = [
    *(("dna.py", *one) for one in DATASET),
    *(("motifs.py", *one) for one in BACKBONE),
    *(("hinge.py", *one) for one in OBJECTIVE),
    *(("reverse.py", *one) for one in AUGMENT),
    *(("lion.py", *one) for one in OPTIMIZER),
    *(("inverse_sqrt.py", *one) for one in SCHEDULE),
    *(("surgical.py", *one) for one in STRATEGY),
]


# A backbone with maps of strides 2 and 4, of which `spare` uses none, for the changes below it.
PYRAMID = '''"""Two convolutions."""
import torch
from torch import nn
from fmeco.core import Backbone, ConfigError, Features, map_size, resample

KIND = "backbone"

def build(spec) -> Backbone:
    if len(spec.inputs) != 1 or "image" not in spec.inputs:
        raise ConfigError("images only")
    return Pyramid(spec.inputs["image"].shape[0])

class Pyramid(Backbone):
    def __init__(self, channels):
        super().__init__()
        self.width, self.map_widths, self.map_strides = 8, (6, 8), (2, 4)
        self.unmapped = ("spare.weight", "spare.bias")
        self.fine, self.coarse = nn.Conv2d(channels, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.spare = nn.Linear(8, 8)

    def forward(self, inputs):
        return Features(pooled=self.spare(self.coarse(self.fine(inputs["image"])).mean((2, 3))))

    def maps(self, inputs):
        fine = self.fine(inputs["image"])
        return [fine, self.coarse(fine)]
'''
MAPS = [
    ("(6, 8), (2, 4)", "(6, 9), (2, 4)", "maps for fake_images: the maps of an image of 32x32 are [(4, 6, 16, 16), (4, 8, 8, 8)]; map_widths"),
    ("(6, 8), (2, 4)", "(6,), (2, 4)", "maps for fake_images: map_strides (2, 4) and map_widths (6,): a width for each of rising strides"),
    ("(6, 8), (2, 4)", "(6, 8), (4, 2)", "a width for each of rising strides among 2, 4, 8, 16, 32"),
    ("(6, 8), (2, 4)", "(), ()", "maps for fake_images: maps() returns maps; set map_widths and map_strides"),
    ("nn.Conv2d(channels, 6, 3, 2, 1)", "nn.Conv2d(channels, 6, 2, 2)", "the maps of an image of 31x31 are [(4, 6, 15, 15), (4, 8, 8, 8)]"),
    ("return [fine,", "return [fine / 0,", "maps for fake_images: the maps are not finite"),
    ("return [fine,", "return [fine - fine.mean(0),", "maps of one sample for fake_images: the map of stride 2 of sample 0 is another one in a batch"),
    ('("spare.weight", "spare.bias")', '("spare.weight",)', "gradient of maps for fake_images: no gradient of the maps reaches spare.bias"),
    ('"spare.bias")', '"spare.bias", "fine.bias")', "gradient of maps for fake_images: `unmapped` names fine.bias, which maps() uses"),
    ("    def maps(", "    def other(", "maps for fake_images: TypeError: Pyramid.mapped returns no grid"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "said"), MAPS)
def test_maps_that_are_not_as_announced_are_one_line(before: str, after: str, said: str) -> None:
    assert before in PYRAMID
    lines = check_plugin(write("pyramid.py", PYRAMID.replace(before, after)))
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_maps_as_announced_pass() -> None:
    assert check_plugin(write("pyramid.py", PYRAMID)) == []


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fmeco's own data, check with images alone."""

    def plugins(kind: str) -> dict[str, Any]:
        found = registry.plugins(kind)
        return {"fake_images": found["fake_images"]} if kind == "datasets" else found

    monkeypatch.setattr(bench, "plugins", plugins)


@pytest.mark.parametrize(("file", "before", "after", "said"), BROKEN)
def test_a_broken_promise_is_one_line(file: str, before: str, after: str, said: str) -> None:
    texts = documented()
    assert before in texts[file]
    broken = write(f"broken/{file}", texts[file].replace(before, after))
    needed = {"motifs.py": ["dna.py"], "reverse.py": ["dna.py"], "hinge.py": ["dna.py", "motifs.py"]}
    beside = [write(f"beside/{name}", texts[name]) for name in needed.get(file, [])]
    lines = check_plugin(broken, plugins=beside)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{file}: ")
    assert said in lines[0]
    assert "\n" not in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(spec): ...", 'read: /p.py: a plug-in file needs a line with its kind, such as: KIND = "objective"'),
        ('KIND = "augment"\ndef build(*, x): ...', "x needs a type annotation"),
        ('KIND = "augment"\ndef build(): ...', "read: the file has no docstring, which `fmeco list` shows"),
        ('"""A."""\nimport nothing_of_that_name\nKIND = "augment"\ndef build(): ...', "could not be imported"),
        ('"""A."""\nKIND = "augment"\nOPEN = True\ndef build(arch): ...', "OPEN takes any name, and NAMES has none"),
    ],
)
def test_a_file_that_is_no_plugin_is_one_line(text: str, said: str) -> None:
    lines = check_plugin(write("p.py", text))
    assert said.replace("/p.py", str(Path("p.py"))) in lines[0]
    if "docstring" not in said:
        assert len(lines) == 1, lines


CONSTRAINT = """
class Pull(Constraint):
    def __init__(self, named): self.named, self.start = named, {n: p.detach().clone() for n, p in named.items()}
    def thaw(self): ...
    def gradients(self, rescale): ...
    def stepped(self): ...
    def state(self): return self.start
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("return self.start", "return self.start", None),
        (
            "return self.start",
            "return {n: x.clone() for n, x in self.start.items()}",
            "is a copy: resuming writes into",
        ),
        ("return self.start", "return {'x': 1.0}", "constraint: Constraint.state()['x'] must be a tensor"),
        ("def thaw(self): ...", "own = {'backbone.x': 1}\n    def thaw(self): ...", None),
        (
            "def __init__(self, named):",
            "def __init__(self, named): self.own = named;",
            "a name that the model has already",
        ),
        ("(Constraint)", "", "constraint: bind() must return a core.Constraint, not Pull"),
    ],
)
def test_a_constraint_is_checked_around_a_step(before: str, after: str, said: str | None) -> None:
    text = documented()["surgical.py"].replace("(Phase(scales),)", "(Phase(scales),), bind=Pull")
    text = text.replace("import Doc,", "import Constraint, Doc,") + CONSTRAINT.replace(before, after)
    lines = check_plugin(write("surgical.py", text))
    assert len(lines) == (said is not None), lines
    if said is not None:
        assert said in lines[0]


FLIP = '''
"""Mirror images of half of the samples."""

from fmeco.core import Augment

KIND = "augment"


def build(spec): return Flip()


class Flip(Augment):
    per_sample = True
    carries = frozenset({"mask"})

    def sample(self, inputs, key):
        if key % 2:
            return inputs
        return {name: x.flip(-1) if name in ("image", "mask") else x for name, x in inputs.items()}
'''


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("KIND", "KIND", None),
        ('("image", "mask")', '("image",)', "masks of disks: it says that it carries masks, and 12% of their pixels"),
        ('frozenset({"mask"})', "frozenset()", "moves images, but not the mask of this dataset with them"),
    ],
)
def test_an_augmentation_must_carry_what_lies_on_the_image(before: str, after: str, said: str | None) -> None:
    disks = write("beside/disks.py", documented()["disks.py"])
    options = {"plugins": [disks], "dataset": "disks"}
    lines = check_plugin(write("flip.py", FLIP.replace(before, after)), **options)
    assert lines == [] if said is None else len(lines) == 1 and said in lines[0], lines
