"""Download published files, each one time. Nothing else in fmeco uses the network.

A partial download never appears under the final name. Inside `offline`, nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fmeco.errors import CheckpointError, ResourceError, clean
from fmeco.files import disk_error
from fmeco.log import say

TIMEOUT = 60  # seconds
BRING = "fmeco fetch REF --out FOLDER"
_offline = False
_recorded: dict[Path, File] | None = None  # files asked for inside `recorded`; None = outside of it


class NotPublished(ResourceError):
    """Report that the server has no file at this URL (HTTP 404 or 410)."""


class NotHere(ResourceError):
    """Report a file that is not on this machine, inside `offline`."""


@dataclass(frozen=True)
class File:
    """Describe a published file, and the place of its copy on this machine.

    url: address of the file.
    path: place of the copy, which may not exist yet.
    size: in bytes; 0 = not known.
    digest: ALGORITHM:HEX, such as sha256:f37072fd, or its first digits; "" = not known.
    licence: licence of the content; None = not stated.
    name: name of the file in its own folder, such as config.json; "" = the last part of the URL.
    bring: command that fetches it on a machine with a network, for messages.
    """

    url: str
    path: Path
    size: int = 0
    digest: str = ""
    licence: str | None = None
    name: str = ""
    bring: str = BRING

    @property
    def here(self) -> bool:
        """Tell whether the copy exists."""
        return self.path.is_file()

    def __str__(self) -> str:
        facts = [show_size(self.size)] if self.size else []
        facts += [self.digest.replace(":", " ")] if self.digest else []
        facts += [f"licence {clean(self.licence)}"] if self.licence else []
        return clean(self.url) + (f" ({', '.join(facts)})" if facts else "")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a command prints them with --json."""
        return {
            "url": self.url,
            "path": str(self.path),
            "size": self.size or None,
            "digest": self.digest or None,
            "licence": self.licence,
            "here": self.here,
        }


def show_size(size: float) -> str:
    """Format a number of bytes: 44.7 MB."""
    unit, power = next(((u, p) for u, p in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= p), ("bytes", 1.0))
    return f"{size / power:.0f} {unit}" if power == 1 else f"{size / power:.1f} {unit}"


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Refuse every download inside the `with` block. Raises NotHere there for a file that is not on this machine."""
    global _offline
    outer, _offline = _offline, True
    try:
        yield
    finally:
        _offline = outer


def is_offline() -> bool:
    """Tell whether downloads are refused."""
    return _offline


@contextlib.contextmanager
def recorded() -> Iterator[dict[Path, File]]:
    """Record every file that is asked for inside the `with` block, by its path."""
    global _recorded
    outer, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = outer


def record(file: File) -> File:
    """Add a file to the ones that `recorded` lists. Returns it, with the size of its copy, and the hash noted beside it."""
    if file.here:
        file = dataclasses.replace(file, size=file.path.stat().st_size, digest=file.digest or _noted_digest(file))
    if _recorded is not None:
        _recorded[file.path] = file
    return file


def weights_file(url: str, digits: str = "", **facts: Any) -> File:
    """Describe a file of weights, whose copy is in torch's cache folder.

    digits: first hex digits of the file's SHA-256, "" = unknown.
    facts: other fields of File.
    """
    import torch

    folder = Path(torch.hub.get_dir()) / "checkpoints"  # noqa: TID251  torch's own folder for weights
    # Only a name with hash digits is unique. Others are not (every model of a hub is model.safetensors): use the whole path.
    name = os.path.basename(url) if digits else urllib.parse.urlsplit(url).path.strip("/").replace("/", "--")
    return File(url, folder / name, digest=f"sha256:{digits}" if digits else "", **facts)


def fetch(url: str, digits: str = "") -> Path:
    """Return the local path of the weights at `url`; download them if they are not there yet.

    digits: first hex digits of the file's SHA-256, "" = unknown.

    Raises the errors of `get`.
    """
    return get(weights_file(url, digits))


def get(file: File) -> Path:
    """Return the path of a file's copy; download it if it is not there yet.

    Raises NotHere, NotPublished or ResourceError for a failed download, CheckpointError for a wrong hash, and DiskError.
    """
    file = record(file)
    if not file.here:
        if _offline:
            raise _refusal(file)
        given, file = file.digest, ask(file)
        say(f"downloading {file}")
        _digest_note(file).unlink(missing_ok=True)  # of an earlier copy
        _download(file)
        _mark(file, absent=False)
        if file.digest and not given:  # a later load compares with it, too
            _digest_note(file).write_text(file.digest, "utf-8")
        file = record(file)
    algorithm, _, digits = file.digest.partition(":")
    if digits:
        with open(file.path, "rb") as body:
            digest = hashlib.file_digest(body, algorithm).hexdigest()
        if not digest.startswith(digits):
            name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
            raise CheckpointError(
                f"{file.path} is not the published file: its {name} begins {digest[: len(digits)]}, not {digits}",
                "delete it; the next run downloads it again",
            )
    return file.path


def exists(file: File) -> bool:
    """Tell whether a file is on this machine or published, without downloading it. Raises NotHere and ResourceError."""
    if record(file).here:
        return True
    try:
        if _offline:
            raise _refusal(file)
        record(ask(file))
    except NotPublished:
        return False
    return True


def ask(file: File) -> File:
    """Ask the server for the size and hash of a file, unless they are known. Raises NotPublished and ResourceError."""
    if file.size and file.digest:
        return file
    redirects = _Redirects()
    with _network(file):
        try:
            request = urllib.request.Request(file.url, method="HEAD")
            with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT) as answer:
                size = int(answer.headers.get("Content-Length") or 0)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise
            size = 0  # the server answers no HEAD request
    return dataclasses.replace(file, size=size or file.size, digest=file.digest or redirects.digest)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, and keep the SHA-256 that a hub of models states when it redirects to a large file."""

    digest = ""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        stated = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-Etag") or "")
        self.digest = f"sha256:{stated[1]}" if stated else self.digest
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            following.method = req.get_method()  # older Pythons turn HEAD into GET
        return following


def _refusal(file: File) -> ResourceError:
    """Return the error for a file that is not on this machine, while downloads are refused."""
    if _marker(file).is_file():
        return NotPublished(f"{clean(file.url)} is not published")
    return NotHere(not_here([file]))


def not_here(files: list[File]) -> str:
    """Say that files are not on this machine, and how to bring them."""
    lines = [f"{file} is not at {clean(file.path)}" for file in files]
    bring = " and ".join(dict.fromkeys(f"`{clean(file.bring)}`" for file in files))
    way = f"--offline fetches nothing: run {bring} on a machine with a network, and carry the folder here"
    return f"{lines[0]}, and {way}" if len(lines) == 1 else "\n".join([*lines, way])


def _marker(file: File) -> Path:
    """Return the path of the empty file which says that the server had no such file."""
    return file.path.with_name(f"{file.path.name}.absent")


def _digest_note(file: File) -> Path:
    """Return the path of the small file with the hash that the server stated."""
    return file.path.with_name(f"{file.path.name}.digest")


def _noted_digest(file: File) -> str:
    """Read the hash that the server stated when the file was downloaded; "" if there is none."""
    try:
        noted = _digest_note(file).read_text("utf-8")
    except (OSError, ValueError):
        return ""
    return noted if re.fullmatch("sha256:[0-9a-f]{64}", noted) else ""


def _mark(file: File, *, absent: bool) -> None:
    """Remember whether the server has the file, so that optional files can be told from missing ones without a network."""
    with contextlib.suppress(OSError):
        if absent:
            _marker(file).parent.mkdir(parents=True, exist_ok=True)
            _marker(file).touch()
        else:
            _marker(file).unlink(missing_ok=True)


@contextlib.contextmanager
def _network(file: File) -> Iterator[None]:
    """Turn failures of the network within the context into errors that name the file."""
    try:
        yield
    except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
        missing = isinstance(error, urllib.error.HTTPError) and error.code in (404, 410)
        if missing:
            _mark(file, absent=True)
            if _recorded is not None:
                _recorded.pop(file.path, None)
        raise (NotPublished if missing else ResourceError)(
            f"could not download {clean(file.url)}: {clean(getattr(error, 'reason', error))}",
            f"check the network, or put the file at {clean(file.path)} yourself",
            f"`{clean(file.bring)}` on a machine with a network makes a folder to carry here",
        ) from None


def _download(file: File) -> None:
    """Download to a temporary name beside the final one, then rename it when it is complete."""
    from tqdm import tqdm

    temporary = file.path.with_name(f".{file.path.name}.{uuid.uuid4().hex}")
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with (
            _network(file),
            urllib.request.urlopen(file.url, timeout=TIMEOUT) as answer,
            open(temporary, "wb") as body,
        ):
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=file.path.name, disable=None) as bar:
                while block := answer.read(1 << 20):
                    body.write(block)
                    bar.update(len(block))
            if size and body.tell() != size:
                raise ResourceError(
                    f"the download of {file.url} broke off at {body.tell()} of {size} bytes", "try again"
                )
        os.replace(temporary, file.path)
    except OSError as error:
        raise disk_error(error, file.path) from None
    finally:
        temporary.unlink(missing_ok=True)
