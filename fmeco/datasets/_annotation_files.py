"""Find the images of a folder, and the file of annotations that belongs to each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from fmeco.core import DataError, clean, listing
from fmeco.datasets._box_lists import NAMED

Unannotated = Literal["error", "background", "unlabelled"]


class Images(NamedTuple):
    """Hold the paths of the images of each split, relative to the dataset's folder, and notes for the user."""

    parts: dict[str, list[str]]
    notes: list[str]


Find = Callable[..., Images]  # (folder, *names that its folder of images may have)


class Beside:
    """Find the file of annotations of each image, by its name.

    root: folder that paths are relative to.
    suffix: of the files, such as .xml.
    folders: name of a folder of images -> names that the folder of their annotations may have.
    called: what messages call such a file.
    unannotated: what an image without a file is.
    """

    def __init__(
        self, root: str, suffix: str, folders: Mapping[str, Sequence[str]], called: str, unannotated: Unannotated
    ) -> None:
        self.root, self.suffix, self.folders, self.called = root, suffix, folders, called
        self.unannotated: Unannotated = unannotated
        self.spare: dict[
            str, dict[str, str]
        ] = {}  # folder of annotations -> name without suffix -> file that no image has
        self.taken: dict[tuple[str, str], str] = {}  # folder of annotations and name -> its image
        self.without = 0

    def of(self, names: Sequence[str]) -> list[str | None]:
        """Return the path of each image's file; None where there is none. Raises DataError that names images without one."""
        files = [self._of(name) for name in names]
        absent = [name for name, file in zip(names, files, strict=True) if file is None]
        self.without += len(absent)
        if absent and self.unannotated == "error":
            raise DataError(
                f"{clean(self.root)}: {len(absent):,} of {len(names):,} images have no {self.called} of the same name: "
                f"{listing(absent, NAMED)}",
                "if nothing is to be seen in them: dataset.unannotated=background",
                "if it is not known what is to be seen in them: dataset.unannotated=unlabelled",
            )
        return files

    def annotated(self, file: str | None) -> bool:
        """Tell whether an image with this file, or without one (None), is annotated."""
        return file is not None or self.unannotated == "background"

    def unused(self, *, complete: bool) -> list[str]:
        """Return notes on images without a file. complete: every image of the folder was looked at.

        Raises DataError that names files without an image.
        """
        spare = [os.path.join(folder, file) for folder, files in self.spare.items() for file in files.values()]
        if spare and complete:
            raise DataError(
                f"{clean(self.root)}: {len(spare):,} files of annotations belong to no image: {listing(spare, NAMED)}",
                "add the images, or remove the files",
            )
        if not self.without:
            return []
        what = "have no objects" if self.unannotated == "background" else "are not annotated"
        return [f"{clean(self.root)}: {self.without:,} images without a {self.called} {what}"]

    def _of(self, name: str) -> str | None:
        folder, stem = self._place(name)
        if folder not in self.spare:
            self.spare[folder] = self._inside(folder)
        if (twin := self.taken.setdefault((folder, stem), name)) != name:
            raise DataError(f"{clean(self.root)}: {clean(twin)} and {clean(name)} are images of the same name")
        file = self.spare[folder].pop(stem, None)
        return os.path.join(self.root, folder, file) if file is not None else None

    def _place(self, name: str) -> tuple[str, str]:
        """Return the folder of an image's annotations, and its name without a suffix."""
        folder, _, file = name.rpartition("/")
        parts, stem = folder.split("/"), os.path.splitext(file)[0]
        for at in reversed(range(len(parts))):
            for called in self.folders.get(parts[at], ()):
                other = "/".join([*parts[:at], called, *parts[at + 1 :]])
                if os.path.isdir(os.path.join(self.root, other)):
                    return other, stem
        return folder, stem

    def _inside(self, folder: str) -> dict[str, str]:
        """Map names without suffixes to the files of annotations in a folder."""
        with os.scandir(os.path.join(self.root, folder)) as entries:
            files = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
        return {stem: file for file in files for stem, end in [os.path.splitext(file)] if end.lower() == self.suffix}
