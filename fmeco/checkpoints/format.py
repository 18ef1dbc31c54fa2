"""Checkpoints: a directory of safetensors and JSON, written atomically, verified on every load; and the transplant,
the only place where weights change hands.

    step-00000123/
        backbone.safetensors    the product, under the source library's own names
        objective.safetensors   heads
        meta.json               format, step, config, data description, metrics, versions
        trainer.safetensors, trainer.json    what only resume needs
        manifest.json           sizes and SHA-256 of the above, and the parents' ids; its own SHA-256 is the id
        README.md               the model card; outside the manifest, to be edited

Nothing here is a pickle, and loading executes nothing.
"""

from __future__ import annotations

import collections
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
import uuid
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from fmeco.core import Backbone, DataSpec, Objective
from fmeco.errors import CheckpointError, DiskError, clean, listing

FORMAT = 1
# format -> a pure function from that format's meta.json to the next one's
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
MANIFEST, META = "manifest.json", "meta.json"
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_NAME = re.compile(r"[A-Za-z0-9_.\-/:\[\]]{1,300}")
_STEP = re.compile(r"step-(\d{8,})")


# ---------------------------------------------------------------- writing


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    trainer: Mapping[str, Any] | None,
    parents: Sequence[str],
    card: str,
) -> Path:
    """Write `folder`/step-N: either all of it appears, or none.

    tensors: file stem -> named tensors. Tensors that share memory are stored once; their aliases go to meta.json.
    trainer: None for a checkpoint to use but not to resume from.
    Raises DiskError when the disk is full or not writable; checkpoints already there are untouched.
    """
    target = folder / f"step-{step:08d}"
    temporary = folder / f".writing-{uuid.uuid4().hex}"
    aliases: dict[str, str] = {}
    files: dict[str, bytes] = {f"{stem}.safetensors": _pack(stem, named, aliases) for stem, named in tensors.items()}
    files[META] = _json({**meta, "format": FORMAT, "step": step, "aliases": aliases})
    if trainer is not None:
        files["trainer.json"] = _json(trainer)
    manifest = {
        "format": FORMAT,
        "parents": list(parents),
        "files": {
            name: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in sorted(files.items())
        },
    }
    files |= {"README.md": card.encode(), MANIFEST: _json(manifest)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, body in files.items():
            write_durably(temporary / name, body)
        _sync_folder(temporary)
        if target.exists():  # the same step, saved again by a run that was resumed before it
            discard(target)
        os.rename(temporary, target)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(error, target, sum(len(body) for body in files.values())) from None
    return target


def snapshot(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU that training does not change. Tensors that share memory stay shared, so that `write` sees it."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in named.items():
        tensor = tensor.detach()
        key = _identity(tensor)
        if key not in copies:
            copies[key] = tensor.to("cpu", copy=True)
        out[name] = copies[key]
    return out


class Writer:
    """Does one thing at a time in a thread beside training. Leaving it as a context waits; an error of the thread is
    raised where it is next waited for."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                self.error = error

        self.wait()
        self.thread = threading.Thread(target=run, name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Wait for the work at hand; raises its error."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:  # else there is something worse to tell
                raise


def write_durably(path: Path, body: bytes) -> None:
    """Write a file and wait until it is on the disk; its mode follows the umask."""
    with open(path, "xb", buffering=0) as file:
        view = memoryview(body)
        while view:  # a raw write may be partial, when the disk is nearly full
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def point(folder: Path, name: str, target: Path) -> None:
    """Make `folder`/name a relative link to `target`, replacing an old link in one step."""
    temporary = folder / f".writing-{uuid.uuid4().hex}"
    try:
        os.symlink(target.name, temporary)
        os.replace(temporary, folder / name)
        _sync_folder(folder)
    except OSError as error:
        raise disk_error(error, folder / name, 0) from None


def discard(path: Path) -> None:
    """Remove a checkpoint; at no moment is half of it visible under its name."""
    grave = path.parent / f".writing-{uuid.uuid4().hex}"
    os.rename(path, grave)
    shutil.rmtree(grave, ignore_errors=True)


def tidy(folder: Path, keep: int) -> None:
    """Remove what a killed process left half-written, and all but the newest `keep` checkpoints and the best."""
    for stray in folder.glob(".writing-*"):
        if stray.is_symlink():
            stray.unlink()
        else:
            shutil.rmtree(stray, ignore_errors=True)
    pointed = {(folder / name).resolve() for name in ("best", "last") if (folder / name).exists()}
    for old in steps(folder)[:-keep]:
        if old.resolve() not in pointed:
            discard(old)


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]))


def disk_error(error: OSError, path: Path, needed: int) -> DiskError:
    """An OSError of writing, in words."""
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your disk quota is used up",
        errno.EFBIG: "the file would be larger than allowed",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "no permission to write",
        errno.EPERM: "no permission to write",
    }.get(error.errno or 0, error.strerror or str(error))
    room = ""
    try:
        place = next(parent for parent in (path, *path.parents) if parent.exists())
        room = f" ({needed / 1e6:.1f} MB needed, {shutil.disk_usage(place).free / 1e6:.1f} MB free)" if needed else ""
    except (OSError, StopIteration):
        pass
    return DiskError(
        f"cannot write {path}: {reason}{room}",
        "what was saved before is intact; `fmeco resume` goes on from it",
    )


def _pack(stem: str, named: Mapping[str, Tensor], aliases: dict[str, str]) -> bytes:
    seen: dict[tuple[Any, ...], str] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in named.items():
        tensor = tensor.detach()
        key = _identity(tensor)
        if tensor.numel() and key in seen:
            aliases[f"{stem}/{name}"] = f"{stem}/{seen[key]}"
            continue
        seen[key] = name
        out[name] = tensor.to("cpu").contiguous()
    body: bytes = safetensors.save(out)
    return body


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose manifest, meta.json and hashes have been checked."""

    path: Path
    id: str  # SHA-256 of the manifest
    meta: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def spec(self) -> DataSpec:
        return DataSpec.from_json(self.meta["spec"])

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The named tensors of a file, read once, hashed, and only then parsed."""
        name = f"{stem}.safetensors"
        found = unpack(_verified(self.path, name, self.manifest), self.path / name)
        for alias, original in self.meta.get("aliases", {}).items():
            if alias.startswith(f"{stem}/"):
                found[alias.removeprefix(f"{stem}/")] = found[original.removeprefix(f"{stem}/")]
        return found

    def trainer(self) -> dict[str, Any]:
        if "trainer.json" not in self.manifest["files"] or not (self.path / "trainer.json").exists():
            raise CheckpointError(
                f"{self.path} holds no training state (a shared copy?): it can be used, but not resumed"
            )
        state = json.loads(_verified(self.path, "trainer.json", self.manifest))
        assert isinstance(state, dict)
        return state


def open_checkpoint(path: Path) -> Checkpoint:
    """Open and check a checkpoint directory. Raises CheckpointError that names the file that is missing or changed."""
    path = Path(path)
    raw = _read_file(path / MANIFEST, limit=1 << 20)
    try:
        manifest = json.loads(raw)
        files = manifest["files"]
        if not isinstance(manifest["format"], int) or not all(isinstance(one, str) for one in manifest["parents"]):
            raise TypeError("format")
        for name, entry in files.items():
            odd = "/" in name or name.startswith(".")
            if odd or not isinstance(entry["size"], int) or not isinstance(entry["sha256"], str):
                raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{path / MANIFEST} is not a manifest: this is not an fmeco checkpoint, or it was changed"
        ) from None
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest['format']}, made by a newer fmeco; this one reads up to {FORMAT}",
            "pip install --upgrade fmeco",
        )
    try:
        meta = json.loads(_verified(path, META, manifest))
        for number in range(manifest["format"], FORMAT):
            meta = MIGRATIONS[number](meta)
        meta["spec"], meta["config"], meta["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path / META} is not valid") from None
    return Checkpoint(path, hashlib.sha256(raw).hexdigest(), meta, manifest)


def verify(checkpoint: Checkpoint) -> None:
    """Check every file that is present against the manifest."""
    for name in checkpoint.manifest["files"]:
        if (checkpoint.path / name).exists() or not name.startswith("trainer."):
            _verified(checkpoint.path, name, checkpoint.manifest)


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint of a run to resume from, or None. Damaged ones are named and passed over."""
    for path in reversed(steps(folder)):
        try:
            checkpoint = open_checkpoint(path)
            verify(checkpoint)
            if "trainer.json" in checkpoint.manifest["files"]:
                return checkpoint
        except CheckpointError as error:
            say(f"passing over a damaged checkpoint: {error.message}")
    return None


def _verified(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    entry = manifest["files"].get(name)
    if entry is None:
        raise CheckpointError(f"{folder}: the manifest does not list {name}")
    body = _read_file(folder / name, limit=entry["size"])
    if len(body) != entry["size"] or hashlib.sha256(body).hexdigest() != entry["sha256"]:
        raise CheckpointError(
            f"{folder / name} is not the file that was saved: its content does not match the manifest",
            "copy the checkpoint again from where it came",
        )
    return body


def _read_file(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes (a longer one is read one byte further, so that its size is wrong)."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            return file.read(limit + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a whole checkpoint: {path.name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def unpack(body: bytes, source: Path) -> dict[str, Tensor]:
    """safetensors bytes -> named tensors. Stricter than the format: no duplicate or odd names, no NaN."""

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        size = int.from_bytes(body[:8], "little")
        if size > min(len(body), 100 << 20):
            raise ValueError("the header is longer than the file")
        header = json.loads(body[8 : 8 + size], object_pairs_hook=no_twins)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not _NAME.fullmatch(name) or entry["dtype"] not in _DTYPES:
                raise ValueError(f"the tensor {clean(name, 80)} has an odd name or type")
        tensors: dict[str, Tensor] = safetensors.load(body)
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{source} is not a valid safetensors file: {clean(error, 200)}") from None
    return _finite(tensors, source)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """A weights file of another tool (.safetensors .pth .pt .ckpt .bin) -> named tensors, running no code of it.

    Raises CheckpointError. There is no fallback to unsafe loading.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return unpack(path.read_bytes(), path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on odd pickles; what is wrong with one is said below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # mutated files raise a dozen classes; every one of them means the same to a user
        why = (
            "it wants to run code"
            if "weights_only" in str(error).lower() or "Unsupported" in str(error)
            else "it is damaged, or no such file"
        )
        raise CheckpointError(
            f"{path} cannot be read as a file of weights: {why}",
            "save the model's state_dict() with safetensors, or with torch.save",
        ) from None
    state = _find_state(loaded)
    if state is None:
        raise CheckpointError(
            f"{path} holds no state dict", "expected named tensors, alone or under 'state_dict' or 'model'"
        )
    for name, tensor in state.items():
        if (
            tensor.is_sparse
            or tensor.is_quantized
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise CheckpointError(f"{path}: the tensor {clean(name, 80)} claims more data than the file holds")
    return _finite(state, path)


def _check_zip(path: Path) -> None:
    """torch.save stores records uncompressed; a deflated one is a bomb."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if (
        len(pickles) != 1
        or pickles[0].file_size > 32 << 20
        or len(set(names)) < len(names)
        or any(
            entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or ".." in entry.filename
            for entry in entries
        )
        or sum(entry.file_size for entry in entries) > path.stat().st_size
    ):
        raise CheckpointError(f"{path} is not an archive that torch.save writes")


def _find_state(loaded: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """The largest mapping of names to tensors, at most three levels down. Several of a size side by side (a teacher and a
    student) are several networks, and their names begin with their keys."""
    if not isinstance(loaded, Mapping) or depth > 3:
        return None
    own = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    inner = {str(key): state for key, value in loaded.items() if (state := _find_state(value, depth + 1))}
    most = max(map(len, inner.values()), default=0)
    if len(own) >= most:
        return own or None
    alike = {key: state for key, state in inner.items() if len(state) > most / 2}
    if len(alike) == 1:
        return next(iter(alike.values()))
    return {f"{key}.{name}": tensor for key, state in alike.items() for name, tensor in state.items()}


def _finite(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    if bad := [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]:
        raise CheckpointError(f"{source}: not finite (NaN or infinity) in {listing(bad, 5)}")
    return tensors


# ---------------------------------------------------------------- the transplant

# Of several networks in one file, the one that its method's paper hands on, and wins here where no `prefix` is named:
# DINO's teacher, MoCo's query encoder, BYOL's online network.
HANDED_ON = ("teacher", "encoder_q", "online", "online_network", "online_encoder")
MINIMUM = 0.95  # share of the backbone's parameters below which loading is refused


@dataclass
class Report:
    """What the transplant did with every tensor, by name."""

    source: str
    share: float = 0.0  # of the backbone's parameters that were loaded
    crossing: str = ""  # "image -> audio", where the source's data was of another modality
    prefix: str = ""  # stripped from the source's names
    loaded: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)  # loaded after a change of shape that is well defined
    missing: list[str] = field(default_factory=list)  # of the backbone, not in the source: kept their initial value
    mismatched: list[str] = field(default_factory=list)  # in both, of different shapes
    left_out: list[str] = field(default_factory=list)  # of the source, excused by name: the old class layer
    unexpected: list[str] = field(default_factory=list)  # of the source, with no place in the backbone
    new: list[str] = field(default_factory=list)  # heads that start afresh
    carried: list[str] = field(default_factory=list)  # classes whose head rows were carried over by name

    def lines(self) -> list[str]:
        out = [
            f"weights from {self.source}: {self.share:.1%} of the backbone's parameters ({len(self.loaded)} tensors)"
        ]
        if self.crossing:
            out.append(f"  across modalities, {self.crossing}: --control scratch says what they are worth there")
        if self.prefix:
            out.append(f"  stripped the prefix '{self.prefix}'")
        for label, names in (
            ("reshaped", self.reshaped),
            ("not in the source, kept as initialised", self.missing),
            ("of another shape, kept as initialised", self.mismatched),
            ("left out, not of the backbone", self.left_out),
            ("left out, no place for", self.unexpected),
            ("new", self.new),
            ("head rows carried over for the classes", self.carried),
        ):
            if names:
                out.append(f"  {label}: {listing(names, 6)}")
        return out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def transplant(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    *,
    source: str,
    allow_partial: bool = False,
    prefix: str | None = None,
) -> Report:
    """Load `state` into a backbone. Every tensor is loaded, excused by name, or an error.

    prefix: what the names of the backbone's tensors begin with in `state`; None finds it. Raises CheckpointError when less than MINIMUM of the parameters are loaded, or when the source has tensors that
    belong to another architecture, unless `allow_partial`.
    """
    library = backbone.library
    own = library.state_dict()
    if prefix is None:
        prefix = _best_prefix(state, own, source)
    elif not any(name.startswith(prefix) for name in state):
        raise CheckpointError(f"transfer.prefix: no tensor of {source} begins with '{clean(prefix)}'")
    report = Report(source, prefix=prefix)
    theirs = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    report.left_out = sorted(name for name in state if not name.startswith(prefix))
    theirs, report.reshaped = backbone.adapt(theirs)
    accepted: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name not in own:
            excused = name.startswith(backbone.class_layers)
            (report.left_out if excused else report.unexpected).append(name)
        elif own[name].shape != tensor.shape:
            report.mismatched.append(f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}")
        else:
            accepted[name] = tensor
            report.loaded.append(name)
    # Counters of batch norm are absent from old files and change no output.
    report.missing = [name for name in own if name not in theirs and not name.endswith("num_batches_tracked")]
    weights = {name: parameter.numel() for name, parameter in library.named_parameters()}
    report.share = sum(n for name, n in weights.items() if name in accepted) / max(1, sum(weights.values()))
    # Without its running statistics a trained batch norm computes something else: they count as much as all parameters.
    statistics = [name for name in report.missing if name not in weights]
    if (report.share < MINIMUM or report.unexpected or statistics) and not allow_partial:
        problems = [
            f"{label}: {listing(names, 6)}"
            for label, names in (
                ("of another shape", report.mismatched),
                ("not in the source", report.missing),
                ("no place for", report.unexpected),
            )
            if names
        ]
        raise CheckpointError(
            f"{source} does not fit this backbone: {report.share:.1%} of its parameters would be loaded\n  "
            + "\n  ".join(problems),
            "name the architecture the file was made with: --set backbone=NAME",
            "--allow-partial loads what fits and leaves the rest as initialised",
        )
    with torch.no_grad():
        for name, tensor in accepted.items():
            own[name].copy_(tensor)
    return report


def _best_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> str:
    """What to strip from the names so that most of them fit. Raises CheckpointError where that is not one answer."""
    fitting: collections.Counter[str] = collections.Counter()
    for name in state:
        starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        fitting.update(name[:start] for start in starts if name[start:] in own)
    most = max(fitting.values(), default=0)
    best = sorted((prefix for prefix, count in fitting.items() if count == most), key=len)
    if len(best) < 2 or best[0] == "":
        return best[0] if best else ""
    for word in HANDED_ON:
        if named := [prefix for prefix in best if word in prefix.split(".")]:
            return named[0]
    raise CheckpointError(
        f"{source} holds several networks that fit this backbone: {listing(best)}",
        f"name one: --set transfer.prefix={best[0]}",
    )


def carry_rows(objective: Objective, old: Mapping[str, Tensor], old_rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Copy head rows from a checkpoint's objective for the classes that both have, matched by name.

    old_rows: tensor name -> class names of its rows, as the checkpoint recorded. Returns the classes carried over.
    """
    mine = dict(objective.named_parameters())
    carried: list[str] = []
    for name, classes in objective.class_rows().items():
        before, theirs = old.get(name), old_rows.get(name, ())
        if before is None or name not in mine or before.shape[1:] != mine[name].shape[1:] or len(theirs) != len(before):
            continue
        places = {label: row for row, label in enumerate(theirs)}
        both = [(row, places[label]) for row, label in enumerate(classes) if label in places]
        if both:
            rows, sources = (list(column) for column in zip(*both, strict=True))
            with torch.no_grad():
                mine[name][rows] = before[sources].to(mine[name])
            carried += [classes[row] for row in rows]
    return list(dict.fromkeys(carried))


def load_objective(objective: Objective, saved: Checkpoint) -> None:
    """Load a checkpoint into the objective that its own config describes."""
    load_exactly(objective.product.library, saved.tensors("backbone"), f"{saved.path / 'backbone.safetensors'}")
    load_exactly(split_state(objective)[1], saved.tensors("objective"), f"{saved.path / 'objective.safetensors'}")


def load_exactly(module: nn.Module | dict[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Load a state that must fit name by name and shape by shape."""
    own = module.state_dict() if isinstance(module, nn.Module) else module
    wrong = sorted(set(own) ^ set(state)) + [
        name for name in own if name in state and own[name].shape != state[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit the model that its own config describes: {listing(wrong)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def split_state(objective: Objective) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An objective's tensors as (backbone under the library's names, everything else)."""
    inside = {id(tensor) for tensor in objective.product.state_dict(keep_vars=True).values()}
    rest = {name: tensor for name, tensor in objective.state_dict(keep_vars=True).items() if id(tensor) not in inside}
    return dict(objective.product.library.state_dict()), rest


def free_bytes(folder: Path) -> float:
    """Free space of the disk that holds `folder`, inf when it cannot be told."""
    try:
        return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    except (OSError, StopIteration):
        return math.inf
