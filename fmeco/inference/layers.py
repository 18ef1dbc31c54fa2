"""Summarise the tensors of a file by layer, so that those of a large network fit on a screen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

ROWS = 40  # of a summary; longer ones are joined further
# Numbers by which layers are counted. Names come from strangers: Python refuses to convert thousands of digits.
_WORD = re.compile(r"(?<![^.])[0-9]{1,9}(?![^.])")  # as in blocks.3.conv
_ANY = re.compile(r"[0-9]{1,9}")  # as in denselayer3.conv1


def layers(state: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Summarise tensors by layer. A row joins layers whose names differ in numbers alone, and whose tensors are alike.

    Returns a row {"layer", "tensors", "numbers", "types", "shapes"} for each, in the order of the file:
    layer: name, with the range of each number, such as blocks.0-11.attn.
    shapes: tensors of the layer with their shapes, such as "weight (64-512, 64)"; a range where layers differ.
    """
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        layer, dot, last = name.rpartition(".")
        by_layer.setdefault(layer if dot else name, {})[last if dot else ""] = tensor
    rows = _joined(by_layer, _WORD)
    return rows if len(rows) <= ROWS else _joined(by_layer, _ANY)


def _joined(by_layer: Mapping[str, Mapping[str, Tensor]], number: re.Pattern[str]) -> list[dict[str, Any]]:
    """Join layers with the same name but for its numbers, and the same names, types and dimensions of tensors."""
    alike: dict[tuple[str, frozenset[tuple[str, Any, int]]], list[str]] = {}
    for layer, tensors in by_layer.items():
        kinds = frozenset((name, tensor.dtype, tensor.ndim) for name, tensor in tensors.items())
        alike.setdefault((number.sub("*", layer), kinds), []).append(layer)
    return [_row(names, [by_layer[name] for name in names], number) for names in alike.values()]


def _row(names: Sequence[str], parts: Sequence[Mapping[str, Tensor]], number: re.Pattern[str]) -> dict[str, Any]:
    """Describe layers that are alike in a row. parts: the tensors of each."""
    between = number.split(names[0])
    spans = [_span(sorted({int(text) for text in column})) for column in zip(*map(number.findall, names), strict=True)]
    tensors = [tensor for part in parts for tensor in part.values()]
    shapes: dict[str, list[str]] = {}
    for name in parts[0]:
        sizes = zip(*(part[name].shape for part in parts), strict=True)
        shape = ", ".join(f"{min(size)}-{max(size)}" if min(size) < max(size) else str(size[0]) for size in sizes)
        shapes.setdefault(f"({shape})", []).append(name)
    return {
        "layer": "".join(text + span for text, span in zip(between, [*spans, ""], strict=True)),
        "tensors": len(tensors),
        "numbers": sum(tensor.numel() for tensor in tensors),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}),
        "shapes": "; ".join(f"{', '.join(named)} {shape}".strip() for shape, named in shapes.items()),
    }


def _span(numbers: Sequence[int]) -> str:
    """Format ascending numbers: as one, as a range, or, if some in between are absent, as a list in braces."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    if last - first == len(numbers) - 1:
        return f"{first}-{last}"
    return "{" + ",".join(map(str, numbers)) + "}" if len(numbers) < 6 else f"{{{first},...,{last}}}"
