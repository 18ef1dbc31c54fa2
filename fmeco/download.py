"""Download published files once into torch's cache folder. A partial download never appears under the final name."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import torch
from tqdm import tqdm

from fmeco.errors import CheckpointError, ResourceError, clean
from fmeco.files import disk_error


class NotPublished(ResourceError):
    """Report that the server has no file at this URL (HTTP 404 or 410)."""


def fetch(url: str, digits: str = "") -> Path:
    """Return the local path of the file at `url`; download it if it is not there yet.

    digits: the first hex digits of the file's SHA-256, "" = unknown.

    Raises NotPublished or ResourceError for a failed download, CheckpointError for a wrong hash, and DiskError.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"  # noqa: TID251  torch's own folder for weights
    # Only a name with hash digits is unique. Others are not (every model of a hub is model.safetensors): use the whole path.
    path = folder / (os.path.basename(url) if digits else urllib.parse.urlsplit(url).path.strip("/").replace("/", "--"))
    if not path.is_file():
        _download(url, path)
    if digits and not (digest := hashlib.sha256(path.read_bytes()).hexdigest()).startswith(digits):
        raise CheckpointError(
            f"{path} is not the published file: its SHA-256 begins {digest[: len(digits)]}, not {digits}",
            "delete it; the next run downloads it again",
        )
    return path


def _download(url: str, path: Path) -> None:
    """Download to a temporary name beside `path`, then rename it when it is complete."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as answer, open(temporary, "wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
            if size and file.tell() != size:
                raise ResourceError(f"the download of {url} broke off at {file.tell()} of {size} bytes", "try again")
        os.replace(temporary, path)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        kind = NotPublished if isinstance(error, urllib.error.HTTPError) and error.code in (404, 410) else ResourceError
        raise kind(
            f"could not download {url}: {clean(getattr(error, 'reason', error))}",
            f"check the network, or put the file at {path} yourself",
        ) from None
    except OSError as error:
        raise disk_error(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)
