"""Files of other publishers: which ones a run needs, what happens without a network, and folders to carry.

A server on this machine stands in for the hubs. It answers as they do: large files are redirected, with their hash.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fmeco as api
from fmeco.checkpoints import refs, transplant
from fmeco.download import NotHere
from tests.conftest import Answer, photos, texts, tiny, write
from tests.data.test_data import serve_fashion_mnist

Fmeco = Callable[..., Answer]
SHORT = ("--set", "train.epochs=1", "--set", "train.tensorboard=false")
IMAGES = (*SHORT, "--set", "dataset.image_size=32")


@dataclass
class Hub:
    """A server, and the requests that reached it."""

    url: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def answer(self) -> None:
            asked.append(f"{self.command} {self.path}")
            file = Path(self.path.lstrip("/"))
            if self.path.startswith("/hub/") and file.suffix == ".safetensors" and file.is_file():
                self.send_response(302)
                self.send_header("Location", self.path.replace("/hub/", "/cdn/hub/"))
                self.send_header("X-Linked-Etag", f'"{sha256(file)}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.path = self.path.replace("/cdn/hub/", "/hub/")
            (super().do_HEAD if self.command == "HEAD" else super().do_GET)()

        do_GET = do_HEAD = answer

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    made = Hub(f"http://127.0.0.1:{httpd.server_port}/", asked)
    for module in ("timm", "_hf_published"):
        monkeypatch.setattr(f"fmeco.backbones.{module}.HUB", made.url + "hub/{}/resolve/main/{}")
    yield made
    httpd.shutdown()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def publish_timm() -> tuple[str, Path]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    file = Path("hub/timm/test_resnet.r160_in1k/resolve/main/model.safetensors")
    file.parent.mkdir(parents=True)
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return "timm/test_resnet@r160_in1k", file


def publish_text() -> tuple[str, Path]:
    """A model of sentence-transformers, with shards."""
    pytest.importorskip("transformers")
    from safetensors.torch import load_file

    from tests.backbones.test_hf import model

    folder = Path("hub/someone/tiny/resolve/main")
    model(str(folder), "bert", "ForPreTraining")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"model-1.safetensors": sorted(state)[::2], "model-2.safetensors": sorted(state)[1::2]}
    for file, inside in parts.items():
        save_file({name: state[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": true}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return "hf/someone/tiny@DEFAULT", folder / "model-1.safetensors"


def publish_torchvision(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    import torchvision

    torch.manual_seed(6)
    torch.save(torchvision.models.resnet18().state_dict(), "w.pth")
    served = Path(f"resnet18-{sha256(Path('w.pth'))[:8]}.pth")
    Path("w.pth").rename(served)
    weight = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    url = hub.url + served.name
    monkeypatch.setattr(type(weight.value), "url", property(lambda self: url), raising=False)
    return "torchvision/resnet18@DEFAULT", served


def features(ref: str) -> tuple[Tensor, Any, str | None]:
    """Vectors of fixed inputs under the weights of a REF, how its inputs are made, and its licence."""
    source = refs.resolve(ref, None)
    assert source.backbone is not None
    backbone = source.backbone.build(spec=source.spec).eval()
    assert transplant.transplant(backbone, source.state, source=ref).share == 1.0
    torch.manual_seed(7)
    (name, described), *_ = source.spec.inputs.items()
    shape = (2, *described.shape)
    x = torch.randint(1, 20, shape) if described.dtype == "int64" else torch.rand(shape)
    with torch.no_grad():
        return backbone({name: x}).vector, source.spec, source.licence


@pytest.mark.parametrize("library", ["timm", "hf", "torchvision"])
def test_a_fetched_folder_gives_the_same_features_without_a_network(
    library: str, hub: Hub, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, file = (
        publish_torchvision(hub, monkeypatch)
        if library == "torchvision"
        else (publish_timm if library == "timm" else publish_text)()
    )
    if library == "hf":
        data = str(texts(Path("t.jsonl")))
    else:
        data = str(photos(Path("p"), each=5))
    short = SHORT if library == "hf" else IMAGES
    vectors, spec, licence = features(ref)
    shutil.rmtree("torch-home")
    answer = fmeco("fetch", ref, "--out", "carried", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["licence"] == licence == {"timm": "apache-2.0", "hf": "apache-2.0", "torchvision": None}[library]
    assert Path("carried", file.name).read_bytes() == file.read_bytes()
    about = json.loads(Path("carried/published.json").read_text())
    assert about["weights"][file.name] == {"size": file.stat().st_size, "sha256": sha256(file)}

    # Without the publisher and without a cache, on another path.
    hub.asked.clear()
    shutil.rmtree("torch-home")
    Path("carried").rename("elsewhere")
    again, spec_again, licence_again = features("elsewhere")
    assert torch.equal(again, vectors)
    assert (spec_again, licence_again) == (spec, licence)
    answer = fmeco("finetune", "--offline", "--from", "elsewhere", "--dataset", data, *short, "--out", "run")
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    assert ref in answer.err
    assert fmeco("info", "run", "--json").json["licence"] == (licence or "not stated")
    assert fmeco("probe", "--offline", "elsewhere", "--dataset", data, *short[4:]).code == 0
    assert fmeco("evaluate", "--offline", "run").code == 0
    if library == "hf":  # it is a model of its library, too
        assert torch.equal(features("hf/./elsewhere@DEFAULT")[0], vectors)
    assert hub.asked == []

    described = fmeco("info", "elsewhere", "--json").json
    assert described["weights"] == ref
    assert described["licence"] == (licence or "not stated")
    answer = fmeco("evaluate", "elsewhere", "--dataset", data)
    assert answer.code == 4
    assert "published weights without a head" in answer.err
    answer = fmeco("finetune", "--from", "elsewhere", "--dataset", data, "--set", "backbone=mlp")
    assert answer.code == 2
    assert "contradicts" in answer.err


def test_a_carried_folder_is_verified_and_never_written_over(hub: Hub, fmeco: Fmeco) -> None:
    ref, file = publish_timm()
    photos(Path("p"), each=5)
    command = ("check", "--from", "carried", "--dataset", "p", *IMAGES)
    assert fmeco("fetch", ref, "--out", "carried").code == 0
    answer = fmeco("fetch", ref, "--out", "carried")
    assert answer.code == 2
    assert "carried" in answer.err and "--force" in answer.err
    assert fmeco("fetch", ref, "--out", "carried", "--force").code == 0
    answer = fmeco("fetch", ref, "--out", "p", "--force")
    assert answer.code == 2, "only what fmeco wrote is replaced"
    assert Path("p/red").is_dir()
    for wrong, message in (
        ("carried", "copy it"),
        ("resnet18", "SOURCE/ARCH@WEIGHTS"),
        ("timm/test_resnet@x", "r160_in1k"),
    ):
        answer = fmeco("fetch", wrong, "--out", "new")
        assert answer.code == 2
        assert message in answer.err
    assert not Path("new").exists()
    assert fmeco("fetch", "--out", "new").code == 2

    about = json.loads(Path("carried/published.json").read_text())
    for change, named in (
        ({"weights": {}}, "weights"),
        ({"format": 99}, "format 99"),
        ({"backbone": {"name": "timm/test_resnet", "stem": 3}}, "stem"),
        (
            {"spec": {**about["spec"], "inputs": {"image": {"shape": [3, 32, 32], "mean": [1.0], "std": []}}}},
            "mean and std",
        ),
        ({"weights": {"../secret.safetensors": about["weights"][file.name]}}, "secret"),
    ):
        Path("carried/published.json").write_text(json.dumps({**about, **change}))
        answer = fmeco(*command)
        assert answer.code == 4, answer.err
        assert "carried/published.json" in answer.err and named in answer.err
    Path("carried/published.json").write_text(json.dumps({**about, "backbone": {"name": "mine/small"}}))
    answer = fmeco(*command)
    assert answer.code == 2
    assert "carried needs backbones/mine/small: --plugin FILE.py" in answer.err
    Path("carried/published.json").write_text(json.dumps(about))
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    Path("carried", file.name).write_bytes(body)
    answer = fmeco(*command)
    assert answer.code == 4
    assert f"carried/{file.name} was modified" in answer.err
    assert fmeco("info", "carried").code == 4
    Path("carried", file.name).unlink()
    assert "no such file" in fmeco(*command).err


def test_check_lists_the_files_before_any_is_downloaded(
    hub: Hub, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = publish_timm()
    serve_fashion_mnist(Path("served"), hub.url, monkeypatch)
    config = {
        "dataset": {"name": "torchvision/fashion_mnist", "root": "d", "image_size": 32},
        "backbone": {"name": "timm/test_resnet", "weights": "r160_in1k"},
        "train": {"epochs": 1},
    }
    write("c.yaml", config)
    listed = fmeco("check", "c.yaml", "--offline")
    assert listed.code == 6
    assert not hub.asked
    assert "licence apache-2.0" in listed.err and "fmeco fetch timm/test_resnet@r160_in1k --out" in listed.err
    assert listed.err.count(f"{hub.url}served/") == 4
    assert "fmeco fetch --dataset torchvision/fashion_mnist" in listed.err
    assert not Path("d").exists()
    answer = fmeco("check", "c.yaml", "--json")
    assert answer.code == 0, answer.err
    first = answer.err.index("files to download: 5")
    assert first < answer.err.index("downloading"), "said before the start"
    assert "no hash to compare" not in answer.err
    weights, *archives = answer.json["files"]
    assert weights["url"].endswith("/test_resnet.r160_in1k/resolve/main/model.safetensors")
    assert weights["size"] == file.stat().st_size
    assert weights["digest"] == f"sha256:{sha256(file)}", "the hub states it where it redirects"
    assert weights["licence"] == "apache-2.0"
    assert [one["digest"].partition(":")[0] for one in archives] == ["md5"] * 4
    assert {one["size"] for one in archives} == {path.stat().st_size for path in Path("served").iterdir()}
    shown = fmeco("check", "c.yaml", "--offline")
    assert shown.code == 0, "everything is here now"
    assert weights["path"] in shown.out

    # A file that is not what the hub says is refused when it arrives.
    shutil.rmtree("torch-home")
    monkeypatch.setattr("tests.checkpoints.test_fetching.sha256", lambda path: "0" * 64)
    answer = fmeco("check", "c.yaml")
    assert answer.code == 4
    assert "is not the published file" in answer.err


def test_offline_refuses_whatever_would_download(hub: Hub, fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command names the file, the place where it looked, and how to bring it."""
    ref, _ = publish_torchvision(hub, monkeypatch)
    serve_fashion_mnist(Path("served"), hub.url, monkeypatch)
    photos(Path("p"), each=5)
    images = {"name": "torchvision/fashion_mnist", "root": "d", "image_size": 8}
    assert fmeco("pretrain", write("m.yaml", tiny(dataset=images)), "--out", "run").code == 2
    write("m.yaml", {**tiny(), "dataset": images})
    answer = fmeco("pretrain", "m.yaml", "--out", "run")
    assert answer.code == 0, answer.err
    write("w.yaml", {**tiny(), "backbone": {"name": "resnet18", "weights": "DEFAULT"}})
    shutil.rmtree("d")
    hub.asked.clear()
    carried, archive = "fmeco fetch torchvision/resnet18@DEFAULT --out FOLDER", "fmeco fetch --dataset"
    for command, way in (
        (("pretrain", "w.yaml"), carried),
        (("pretrain", "m.yaml"), archive),
        (("finetune", "--from", ref, "--dataset", "p", *IMAGES), carried),
        (("check", "--from", ref, "--dataset", "p", *IMAGES), carried),
        (("probe", ref, "--dataset", "p"), carried),
        (("rank", ref, "--dataset", "p"), carried),
        (("fetch", ref, "--out", "new"), carried),
        (("info", ref), carried),
        (("embed", ref, "--dataset", "p", "--output", "g.npz"), carried),
        (("fetch", "--dataset", "fashion_mnist", "--out", "new"), archive),
        (("evaluate", "run"), archive),
        (("compare", "run", "run"), archive),
        (("embed", "run", "--output", "f.npz"), archive),
        (("resume", "run", "--epochs", "+1"), archive),
    ):
        answer = fmeco(*command, "--offline")
        assert answer.code == 6, (command, answer.err)
        message = answer.err.splitlines()[-1]
        assert hub.url in message and way in message, command
        place = "torch-home" if way == carried else "d/FashionMNIST/raw" if "new" not in command else "new/"
        assert place in message, command
    assert hub.asked == []
    assert fmeco("predict", "run", "p/red/00.png", "--offline").code == 0, "it needs no other file"
    with api.offline(), pytest.raises(NotHere):
        api.probe(ref, dataset="p")
    assert hub.asked == []

    answer = fmeco("fetch", "--dataset", "torchvision/fashion_mnist", "--out", "new", "--json")
    assert answer.code == 0, answer.err
    assert len(answer.json["files"]) == 4
    shutil.rmtree("served")
    answer = fmeco("evaluate", "run", "--set", "dataset.root=new", "--offline")
    assert answer.code == 0, answer.err


def test_a_cached_model_of_the_hub_needs_no_network_for_files_that_it_does_not_have(hub: Hub, fmeco: Fmeco) -> None:
    ref, _ = publish_text()
    texts(Path("t.jsonl"))
    command = ("finetune", "--from", ref, "--dataset", "t.jsonl", *SHORT)
    answer = fmeco(*command, "--offline")
    assert answer.code == 6
    assert "modules.json" in answer.err and f"fmeco fetch {ref}" in answer.err
    assert fmeco(*command, "--out", "a").code == 0
    hub.asked.clear()
    answer = fmeco(*command, "--offline", "--out", "b")
    assert answer.code == 0, answer.err
    assert hub.asked == []
    next(Path("torch-home").rglob("*modules.json")).unlink()
    answer = fmeco(*command, "--offline")
    assert answer.code == 6, "a missing description must not change how texts are pooled"
    assert "modules.json" in answer.err


def test_archives_are_listed_as_the_library_states_them(tmp_path: Path) -> None:
    """Every dataset of torchvision has files to download, each with its own place, and asking writes nothing."""
    from fmeco.datasets.torchvision import NAMES, files

    for name in NAMES:
        found = files(name, {"root": str(tmp_path / "root"), "download": True})
        assert found, name
        assert all(file.url.startswith("http") and not file.here for file in found), name
        assert len({file.path for file in found}) == len(found)
        assert name == "fgvc_aircraft" or all(file.digest for file in found), name
    assert not (tmp_path / "root").exists()
