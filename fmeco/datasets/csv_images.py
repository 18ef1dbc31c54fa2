"""Images listed in a CSV, TSV or Parquet table, with a column of paths and a column of labels."""

from __future__ import annotations

from typing import Annotated, Literal

from fmeco.core import Data, DataSpec, Doc, FilePath, Pixels, Spelling, Splitting
from fmeco.datasets import _file_tables, _image_spec, _images

MODALITY = "image"
FILES = (".csv", ".tsv", ".parquet")
LISTS = "image_folder"  # chosen for tables whose column `path` names files with image_folder's suffixes
LAYOUT = ("image_column", "label_column", "task", "separator", "missing", "decimal", "split_column?")


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath, Doc("the table; image paths are relative to its folder")],
    image_column: Annotated[str, Doc("column of the image paths")] = "path",
    label_column: Annotated[
        str | list[str], Doc("column of the label; several columns become tasks of objective: multi_task")
    ] = "label",
    split_column: Annotated[
        str | None, Doc("column that holds train, val or test; null = split by val_fraction")
    ] = None,
    root: Annotated[FilePath | None, Doc("folder of the images, if it is not the table's")] = None,
    task: Annotated[
        Literal["auto", "class", "multilabel", "number"],
        Doc("kind of the label; auto = number if all labels have decimals, else class"),
    ] = "auto",
    separator: Annotated[str, Doc("with task multilabel: separator between the labels of an image")] = "|",
    spelling: Spelling = Spelling(),
    splitting: Splitting = Splitting(),
    pixels: Pixels = Pixels(),
) -> Data:
    spec = _image_spec.image_spec(known, pixels)
    layout = _file_tables.Layout(
        split_column, root, image_column, label_column, task, separator=separator, spelling=spelling
    )
    labelled = _file_tables.in_table(_images.ImageFiles, known, whole, path, layout, splitting)
    return _images.image_data(known, spec, labelled, pixels)
