"""Load the dataset plug-in that reads a model's new inputs, and describe the preprocessing in words."""

from __future__ import annotations

from types import ModuleType

from fmeco.core.data import DataSpec
from fmeco.errors import ConfigError, clean
from fmeco.plugins.registry import find, require


def reader_module(spec: DataSpec) -> ModuleType | None:
    """Import the dataset plug-in named in `spec.reader`; None if it is empty. Raises ConfigError if it is missing.

    The module may define:
    read(spec, sources): return the samples of files or strings; or, in a call of its own, of inputs passed in Python (Given).
    SENTENCES = True: a source may be a text instead of a path.
    TAKES: inputs in Python that `read` takes, with words for messages: "rows" (dicts, DataFrames), "arrays", "mappings".
    plot(spec, inputs, rows, file): draw predictions to an image file.
    show(spec, inputs): show a sample, as it is stored, in a report: an image of Pillow, or a text.
    sheet(spec, samples, captions, columns, smallest): draw samples, as they are stored, side by side; for `fmeco check --pictures`.
    save(spec, samples, index, answer, stem): write the answer to a sample of `read` that lies on the image, such as a mask, to
        files whose paths begin with `stem`, each whole or not at all. Returns columns of index.csv: name -> path of a file. A
        DataError becomes the error of this sample alone.
    WRITES: suffix -> write(spec, answers, file), which writes all answers, each (samples, index, answer) as for `save`, to a file.
    SPEC: a core.Stored that declares what its specs hold in checkpoints, in `inputs` and `preprocessing`.
    shown(spec): describe the preprocessing in a few words.
    """
    if not spec.reader:
        return None
    require("reading these inputs", [("datasets", spec.reader)])
    return find("datasets", spec.reader)[0].load()


def shown_by_reader(spec: DataSpec) -> str | None:
    """Describe the preprocessing in a few words by the reader's `shown`; None if it has none."""
    try:
        shown = getattr(reader_module(spec), "shown", None)
    except ConfigError:  # the reader's plug-in is not loaded
        return None
    return None if shown is None else str(shown(spec))


def show_preprocessing(spec: DataSpec) -> str:
    """Describe the preprocessing in a few words: by the reader's `shown`, or by the plain values in `spec.preprocessing`."""
    if (shown := shown_by_reader(spec)) is not None:
        return shown
    plain = {name: value for name, value in spec.preprocessing.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{clean(name)} {clean(value, 60)}" for name, value in plain.items()) or f"{spec.modality} data"
