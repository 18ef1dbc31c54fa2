"""Caches that were damaged, whose files were replaced, touched, moved or copied, and the list of them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fmeco as api
from fmeco.core import Data, Samples
from fmeco.data import decoded_cache, disk_cache
from fmeco.data.subset import fraction
from fmeco.datasets import _files
from fmeco.features import extractor
from tests.conftest import COLOURS, Answer, picture, tiny, tones, write
from tests.data.test_data import build

Fmeco = Callable[..., Answer]
situation = pytest.mark.situation


def pictures(root: Path) -> list[str]:
    """Write class folders of pictures that all have the same size in bytes. Returns lines of path,label."""
    lines = []
    for c, name in enumerate(("blue", "red")):
        for i in range(6):
            picture(root / name / f"{i}.bmp", COLOURS[name], seed=10 * c + i)
            lines.append(f"{name}/{i}.bmp,{name}")
    return lines


def folder_of_images() -> dict[str, Any]:
    pictures(Path("data"))
    return {"name": "image_folder", "path": "data", "image_size": 16}


def pattern_of_images() -> dict[str, Any]:
    pictures(Path("data"))
    return {"name": "images", "path": "data/**/*.bmp", "image_size": 16}


def list_of_images() -> dict[str, Any]:
    lines = pictures(Path("data"))
    Path("data/list.txt").write_text("\n".join(line.partition(",")[0] for line in lines))
    return {"name": "images", "path": "data/list.txt", "image_size": 16}


def table_of_images() -> dict[str, Any]:
    Path("data").mkdir()
    Path("data/t.csv").write_text("\n".join(["path,label", *pictures(Path("data"))]))
    return {"name": "csv_images", "path": "data/t.csv", "image_size": 16}


def folder_of_recordings() -> dict[str, Any]:
    tones(Path("data"), each=6)
    return {"name": "audio", "path": "data", "seconds": 0.3}


def table_of_recordings() -> dict[str, Any]:
    paths = sorted(tones(Path("data"), each=6).rglob("*.wav"))
    lines = [f"{path.relative_to('data')},{path.parent.name}" for path in paths]
    Path("data/t.csv").write_text("\n".join(["path,label", *lines]))
    return {"name": "audio", "path": "data/t.csv", "seconds": 0.3}


DATASETS = [
    folder_of_images,
    pattern_of_images,
    list_of_images,
    table_of_images,
    folder_of_recordings,
    table_of_recordings,
]
every_dataset = pytest.mark.parametrize("dataset", DATASETS, ids=lambda make: make.__name__.replace("_", " "))


class Decodes:
    """Read a split through the cache, and count what is decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.paths: list[str] = []
        self.said: list[str] = []
        monkeypatch.setattr(decoded_cache, "say", self.said.append)

    def all(self, data: Data) -> list[dict[str, Tensor]]:
        """Return every training sample; `paths` are those that were decoded for it."""
        samples = data.split("train")
        cached = decoded_cache.decoded(samples, 1e9)
        assert isinstance(cached, decoded_cache.Decoded)
        self.paths, real = [], type(samples).decode  # type: ignore[attr-defined]
        with self.monkeypatch.context() as patch:
            patch.setattr(type(samples), "decode", lambda s, path: self.paths.append(path) or real(s, path))
            return [cached[i] for i in range(len(cached))]


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    return Decodes(monkeypatch)


def assert_same(values: list[dict[str, Tensor]], samples: Samples) -> None:
    """The cache holds what is read without one."""
    assert len(values) == len(samples)
    for i, inputs in enumerate(values):
        wanted = samples[i]
        assert inputs.keys() == wanted.keys()
        assert all(torch.equal(inputs[name], x) for name, x in wanted.items()), samples.name(i)


def replace(path: Path) -> None:
    """Change half of the bytes of a file, but neither its size nor its time of modification."""
    status, body = path.stat(), bytearray(path.read_bytes())
    for at in range(len(body) // 2, len(body)):
        body[at] ^= 0x15
    path.write_bytes(body)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


# ---------------------------------------------------------------- files that changed, and files that did not


@situation("data replaced under the same name, size and time", "read rightly")
@every_dataset
@pytest.mark.parametrize("whole", [False, True], ids=["one", "all"])
def test_replaced_files_are_read(dataset: Callable[[], dict[str, Any]], whole: bool, decodes: Decodes) -> None:
    config = dataset()
    data = build(**config)
    before = decodes.all(data)
    train = data.split("train")
    changed = [Path(train.files.root, train.name(i)) for i in (range(len(train)) if whole else [1])]  # type: ignore[attr-defined]
    for path in changed:
        replace(path)
    again = build(**config)
    after = decodes.all(again)
    assert_same(after, again.split("train"))
    assert any(not torch.equal(x, before[1][name]) for name, x in after[1].items())
    assert sorted(map(Path, decodes.paths)) == sorted(changed), "only what changed is decoded"
    assert_same(decodes.all(again), again.split("train"))
    assert not decodes.paths
    assert not decodes.said, "nothing is damaged"


def permitted(config: dict[str, Any]) -> dict[str, Any]:
    for path in Path("data").rglob("*"):
        path.chmod(0o700)
    return config


def touched(config: dict[str, Any]) -> dict[str, Any]:
    for path in Path("data").rglob("*.*"):
        os.utime(path, (1, 1))
    return config


def elsewhere(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "path": config["path"].replace("data", "other/place", 1)}


def moved(config: dict[str, Any]) -> dict[str, Any]:
    Path("other").mkdir()
    Path("data").rename("other/place")
    return elsewhere(config)


def copied(config: dict[str, Any]) -> dict[str, Any]:
    shutil.copytree("data", "other/place")
    return elsewhere(config)


def copied_with_times(config: dict[str, Any]) -> dict[str, Any]:
    shutil.copytree("data", "other/place", copy_function=shutil.copy2)
    return elsewhere(config)


@situation("data that was touched, moved or copied", "read rightly")
@every_dataset
@pytest.mark.parametrize("change", [permitted, touched, moved, copied, copied_with_times], ids=lambda f: f.__name__)
def test_files_of_the_same_bytes_are_not_decoded_again(
    dataset: Callable[[], dict[str, Any]], change: Callable[..., dict[str, Any]], decodes: Decodes
) -> None:
    config = dataset()
    data = build(**config)
    decodes.all(data)
    again = build(**change(config))
    for _ in range(2):
        assert_same(decodes.all(again), again.split("train"))
        assert not decodes.paths
    assert len(list((disk_cache.folder() / "decoded").glob("*.data"))) == 1
    assert again.spec.fingerprint == data.spec.fingerprint, "times are no part of the fingerprint"


@situation("data that was touched, moved or copied", "read rightly")
def test_two_folders_of_equal_names_and_sizes_do_not_mix(decodes: Decodes) -> None:
    config = folder_of_images()
    other = copied_with_times(config)
    for path in Path("other").rglob("*.bmp"):
        replace(path)
    for turn in range(4):
        data = build(**(config, other)[turn % 2])
        assert_same(decodes.all(data), data.split("train"))
        assert_same(decodes.all(data), data.split("train"))
        assert not decodes.paths, "the second time, all are cached"
    held = sum(path.stat().st_size for path in (disk_cache.folder() / "decoded").glob("*.data"))
    assert held < 5 * len(data.split("train")) * 16 * 20 * 3, "what is no longer in use does not pile up"


@situation("data that was touched, moved or copied", "read rightly")
@every_dataset
def test_the_hash_of_a_files_bytes_is_kept_beside_the_sample(
    dataset: Callable[[], dict[str, Any]], decodes: Decodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = build(**dataset())
    train: Any = data.split("train")
    cached = decoded_cache.decoded(train, 1e9)
    wanted = [
        hashlib.blake2b(Path(train.files.root, train.name(i)).read_bytes(), digest_size=16).digest()
        for i in range(len(train))
    ]
    assert cached.digest(1, stored=True) is None, "no file is read for it"
    assert cached.digest(1) == wanted[1]
    decodes.all(data)
    monkeypatch.setattr(_files, "open", lambda *_, **__: pytest.fail("a file was read"), raising=False)
    assert [cached.digest(i, stored=True) for i in range(len(train))] == wanted
    half = fraction(Data(data.spec, cached), 0.5, seed=0).split("train")
    assert {half.digest(i) for i in range(len(half))} <= set(wanted)


@situation("data that was touched, moved or copied", "read rightly")
def test_a_huge_file_is_not_hashed_and_decoded_again(decodes: Decodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "LARGEST_HASHED", 1000)
    config = folder_of_images()
    decodes.all(build(**config))
    again = build(**touched(config))
    assert_same(decodes.all(again), again.split("train"))
    assert len(decodes.paths) == len(again.split("train"))


@situation("data that was touched, moved or copied", "read rightly")
def test_two_machines_with_copies_of_the_data_hash_each_file_once(
    decodes: Decodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_of_images()
    both = [build(**config).split("train"), build(**copied(config)).split("train")]
    decodes.all(Data(build(**config).spec, both[0]))
    machines = [decoded_cache.decoded(samples, 1e9) for samples in both]
    hashed: list[int] = []
    real = type(both[0]).digest
    monkeypatch.setattr(type(both[0]), "digest", lambda s, i, **how: hashed.append(i) or real(s, i, **how))
    for _ in range(5):  # epochs
        for samples, cached in zip(both, machines, strict=True):
            assert_same([cached[i] for i in range(len(cached))], samples)
    assert len(hashed) <= 2 * len(both[0])


# ---------------------------------------------------------------- damage


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 4
    path.write_bytes(body)


def cache_file(suffix: str) -> Path:
    return next((disk_cache.folder() / "decoded").glob(f"*{suffix}"))


INDEX: dict[str, Callable[[Path], Any]] = {
    **{f"byte {at}": (lambda path, at=at: flip(path, at)) for at in (0, 7, 8, 15, 16, 24, 31, 32, 47, 48, 55)},
    "all ones": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "text": lambda path: path.write_bytes(b"not an index " * 100),
    "shifted": lambda path: path.write_bytes(path.read_bytes()[8:]),
}


@situation("damaged caches of decoded samples", "said")
@pytest.mark.parametrize("damage", INDEX)
def test_a_damaged_index_is_dropped_and_read_anew(damage: str, decodes: Decodes) -> None:
    data = build(**folder_of_images())
    decodes.all(data)
    INDEX[damage](cache_file(".index"))
    assert_same(decodes.all(data), data.split("train"))
    assert len(decodes.said) == 1
    assert "is damaged" in decodes.said[0] and str(cache_file(".index")) in decodes.said[0]
    assert len(decodes.paths) == (1 if damage.startswith("byte") else len(data.split("train")))
    assert_same(decodes.all(data), data.split("train"))
    assert (decodes.paths, len(decodes.said)) == ([], 1), "it is whole again"


@situation("damaged caches of decoded samples", "said")
@pytest.mark.parametrize("at", [9, 100, 700, -1])
def test_a_damaged_sample_is_read_anew(at: int, decodes: Decodes) -> None:
    data = build(**folder_of_images())
    decodes.all(data)
    flip(cache_file(".data"), at)
    assert_same(decodes.all(data), data.split("train"))
    assert len(decodes.said) == len(decodes.paths) == 1
    assert Path(decodes.paths[0]).name in decodes.said[0]
    assert_same(decodes.all(data), data.split("train"))
    assert not decodes.paths


@situation("incomplete caches of decoded samples", "read rightly")
@pytest.mark.parametrize("suffix", [".index", ".data", ".json"])
@pytest.mark.parametrize("size", [None, 0, 8, 30])
def test_a_cache_that_was_cut_is_completed(suffix: str, size: int | None, decodes: Decodes) -> None:
    data = build(**folder_of_images())
    decodes.all(data)
    path = cache_file(suffix)
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    assert_same(decodes.all(data), data.split("train"))
    assert_same(decodes.all(data), data.split("train"))
    assert not decodes.paths


@situation("damaged caches of decoded samples", "said")
@pytest.mark.parametrize("damage", ["byte 8", "all ones"])
def test_a_run_is_the_same_with_a_damaged_index(damage: str, fmeco: Fmeco) -> None:
    path = write("c.yaml", {**tiny(train={"epochs": 2, "batch_size": 4}), "dataset": folder_of_images()})
    wanted = api.pretrain(path, out="first")
    for index in (disk_cache.folder() / "decoded").glob("*.index"):
        INDEX[damage](index)
    answer = fmeco("pretrain", path, "--out", "second")
    assert answer.code == 0, answer.err
    assert "is damaged" in answer.err
    assert weights("second") == weights("first")
    assert api.pretrain(path, out="third").metrics == wanted.metrics


@situation("caches on file systems with faults", "read rightly")
@pytest.mark.parametrize("call", ["pread", "preadv", "pwrite", "writev", "utime"])
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ENOSPC])
def test_a_cache_that_fails_costs_time_and_nothing_else(
    call: str, code: int, decodes: Decodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    data = build(**folder_of_images())
    if call in ("pread", "preadv"):
        decodes.all(data)
    cached = decoded_cache.decoded(data.split("train"), 1e9)
    monkeypatch.setattr(os, call, failing)
    assert_same([cached[i] for i in range(len(cached))], data.split("train"))
    again = decoded_cache.decoded(data.split("train"), 1e9)
    assert_same([again[i] for i in range(len(again))], data.split("train"))


@situation("caches on file systems with faults", "read rightly")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_cache_needs_no_locks(code: int, decodes: Decodes, monkeypatch: pytest.MonkeyPatch, fmeco: Fmeco) -> None:
    def failing(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", failing)
    data = build(**folder_of_images())
    decodes.all(data)
    assert_same(decodes.all(data), data.split("train"))
    assert not decodes.paths
    assert fmeco("cache", "--clear", "--json").json["removed"] == 1


@situation("users without a home", "read rightly")
def test_a_user_without_a_home_has_no_cache(probed: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert probed("first") == 2

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert probed("second") == 2
    assert weights("second") == weights("first")


@situation("users without a home", "refused by name")
def test_the_list_of_caches_needs_a_home(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    answer = fmeco("cache")
    assert answer.code == 7
    assert "this user has no home" in answer.err and "XDG_CACHE_HOME" in answer.err


# ---------------------------------------------------------------- features


def weights(run: str) -> dict[str, list[Any]]:
    saved = api.load(run).checkpoint
    return {name: tensor.tolist() for name, tensor in saved.tensors("objective").items()}


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Train a linear probe on pictures into a run. Returns how many times features were computed."""
    config = {**tiny(train={"epochs": 1, "batch_size": 4}), "dataset": folder_of_images()}
    api.pretrain(config, out="source")
    real, computed = extractor.Extractor._compute, []
    monkeypatch.setattr(extractor.Extractor, "_compute", lambda *given: computed.append(1) or real(*given))

    def probe(out: str, path: str = "data") -> int:
        computed.clear()
        task: dict[str, Any] = {"dataset": {"name": "image_folder", "path": path}, "augment": "none"}
        task["transfer"] = {"strategy": "probe", "head": "fresh"}
        api.finetune({**task, "train": {"epochs": 3, "batch_size": 4}}, ref="source", out=out)
        return len(computed)

    return probe


def feature_files() -> list[Path]:
    return sorted((disk_cache.folder() / "features").glob("*.npy"))


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Damage the description of a file of features."""

    def damage(path: Path) -> None:
        about = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps(change(about)))

    return damage


FEATURES: dict[str, Callable[[Path], Any]] = {
    "header": lambda path: flip(path, 30),
    "version": lambda path: flip(path, 6),
    "first bit": lambda path: flip(path, 128),
    "last bit": lambda path: flip(path, -1),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "not described": lambda path: path.with_suffix(".json").unlink(),
    "described by no JSON": lambda path: path.with_suffix(".json").write_text("{"),
    "described by a list": lambda path: path.with_suffix(".json").write_text("[1]"),
    "another checksum": described(lambda about: {**about, "checksum": "0" * 32}),
    "a checksum that is no text": described(lambda about: {**about, "checksum": 1}),
    "no checksum": described(lambda about: {**about, "checksum": None}),
}


@situation("damaged caches of features", "said")
@pytest.mark.parametrize("damage", FEATURES)
def test_damaged_features_are_computed_anew(
    damage: str, probed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(extractor, "say", said.append)
    assert probed("first") == 2
    assert probed("second") == 0
    for path in feature_files():
        FEATURES[damage](path)
    assert probed("third") == 2
    assert weights("third") == weights("first")
    assert sorted(said) == [f"the cached features {path} are damaged: computing them anew" for path in feature_files()]
    assert probed("fourth") == 0
    assert len(said) == 2


@situation("data replaced under the same name, size and time", "read rightly")
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_features_of_replaced_files_are_computed_anew(
    cache: str, probed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed("before")
    for path in Path("data").rglob("*.bmp"):
        replace(path)
    assert probed("after") == 2
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(Path("empty").resolve()))
        assert probed("anew") == 2
    assert weights("after") == weights("anew")
    assert weights("after") != weights("before")


@situation("data that was touched, moved or copied", "read rightly")
@pytest.mark.parametrize("change", [permitted, touched, moved, copied], ids=lambda f: f.__name__)
def test_features_of_the_same_bytes_are_not_computed_again(
    change: Callable[..., dict[str, Any]], probed: Callable[..., int]
) -> None:
    assert probed("before") == 2
    path = change({"path": "data"})["path"]
    assert probed("after", path) == 0
    assert probed("again", path) == 0
    assert weights("after") == weights("before")


# ---------------------------------------------------------------- the list


@situation("entries of the cache", "said")
def test_an_entry_says_what_it_is_of_and_is_cleared_by_name(probed: Callable[..., int], fmeco: Fmeco) -> None:
    probed("run")
    shown = fmeco("cache")
    listed = fmeco("cache", "--json").json["entries"]
    assert sorted(entry["kind"] for entry in listed) == ["decoded", "decoded", "features", "features"]
    for entry in listed:
        assert entry["data"] == str(Path("data").resolve())
        assert entry["model"] == ("mlp from source" if entry["kind"] == "features" else "")
        assert entry["name"][:12] in shown.out
    assert sorted(entry["samples"] for entry in listed if entry["kind"] == "features") == sorted(
        entry["samples"] for entry in listed if entry["kind"] == "decoded"
    )
    assert str(Path("data").resolve()) in shown.out and "mlp from source" in shown.out
    gone = listed[-1]
    one = fmeco("cache", gone["name"][:12], "--json").json["entries"]
    assert one == [gone]
    assert fmeco("cache", gone["name"][:12], "--clear", "--json").json["removed"] == 1
    left = fmeco("cache", "--json").json["entries"]
    assert [entry["name"] for entry in left] == [entry["name"] for entry in listed[:-1]]
    assert not list(Path(gone["file"]).parent.glob(f"{gone['name']}*")), "nothing of it is left"


@situation("entries of the cache", "refused by name")
@pytest.mark.parametrize("name", ["nothing", "", "../features", "*"])
@pytest.mark.parametrize("clear", [[], ["--clear"]], ids=["show", "clear"])
def test_an_unknown_entry_is_refused(name: str, clear: list[str], decodes: Decodes, fmeco: Fmeco) -> None:
    decodes.all(build(**folder_of_images()))
    answer = fmeco("cache", name, *clear)
    assert answer.code == 2
    assert "no cache is named" in answer.err
    assert len(fmeco("cache", "--json").json["entries"]) == 1


@situation("entries of the cache", "refused by name")
def test_the_beginning_of_two_names_is_refused(fmeco: Fmeco) -> None:
    home = disk_cache.folder() / "features"
    home.mkdir(parents=True)
    for name in ("abc1", "abc2"):
        (home / f"{name}.npy").write_bytes(b"x")
    answer = fmeco("cache", "abc", "--clear")
    assert answer.code == 2
    assert "abc1, abc2" in answer.err
    assert fmeco("cache", "abc1", "--clear", "--json").json == {
        "folder": str(disk_cache.folder()),
        "removed": 1,
        "bytes": 1,
    }
    assert "abc2" in fmeco("cache").out, "an entry without a description is listed, too"
