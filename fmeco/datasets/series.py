"""Time series of a CSV, TSV or Parquet table: one in each column, or one below another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fmeco.core import (
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    FilePath,
    Ge,
    Gt,
    InputSpec,
    Lt,
    Samples,
    Target,
    clean,
    listing,
    same_modality,
)
from fmeco.datasets import _series

MODALITY = "series"

TABLES = True  # --dataset TABLE with a checkpoint of series is a table of series
FILES = (".csv", ".tsv", ".parquet")
LAYOUT = ("time", "columns", "id", "value", "context", "horizon", "season", "missing")

CONTEXT, HORIZON = 336, 96
SHOWN = 12  # most series in a picture


def check(id: str | None, value: str | None, val_fraction: float, test_fraction: float, **_: Any) -> list[str]:
    problems = []
    if (id is None) != (value is None):
        problems.append("`id` and `value` come together: they name columns of a table with series below one another")
    if val_fraction + test_fraction >= 1:
        problems.append(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on")
    return problems


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath, Doc("the table, with a header")],
    time: Annotated[str, Doc("column of numbers or ISO dates")] = "time",
    columns: Annotated[list[str] | None, Doc("which series; null = every column of numbers, or every `id`")] = None,
    id: Annotated[str | None, Doc("column that names the series of a row, where they are below one another")] = None,
    value: Annotated[str | None, Doc("column of the values, beside `id`")] = None,
    context: Annotated[int | None, Doc("steps that are known; null = the checkpoint's, else 336"), Gt(1)] = None,
    horizon: Annotated[
        int | None, Doc("steps to forecast; null = the checkpoint's, else 96; 0 = none, for objective mask"), Ge(0)
    ] = None,
    stride: Annotated[int, Doc("steps from one window to the next"), Gt(0)] = 1,
    season: Annotated[
        int | None, Doc("steps of a season, such as 24 hours, for MASE; null = the checkpoint's, else 1"), Gt(0)
    ] = None,
    missing: Annotated[
        Literal["error", "previous"] | None,
        Doc("missing values: an error, or the value before; null = the checkpoint's, else error"),
    ] = None,
    val_fraction: Annotated[
        float, Doc("share of the time held out for validation, before the test"), Gt(0), Lt(1)
    ] = 0.2,
    test_fraction: Annotated[float, Doc("share of the time, the newest, for testing; 0 = no test"), Ge(0), Lt(1)] = 0.2,
) -> Data:
    same_modality(known, "series")
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    ahead = horizon if horizon is not None else old.get("horizon") or HORIZON
    length: int = old.get("context", CONTEXT) if context is None else context
    period: int = old.get("season", 1) if season is None else season
    gaps: str = old.get("missing", "error") if missing is None else missing
    if known is not None and known.targets and (length, ahead) != (old["context"], old["horizon"]):
        raise ConfigError(
            f"the checkpoint forecasts {old['horizon']} steps from {old['context']}, not {ahead} from {length}"
        )
    layout = _series.Layout(time, columns, id, value, gaps)
    found, notes = _series.read_series(path, layout)
    shares = {"val": val_fraction, "test": test_fraction} if test_fraction else {"val": val_fraction}
    cuts: dict[str, float] = {}
    if not whole:
        cuts, note = _series.cut_at(found, shares, path)
        notes.append(note)
    kept, how, more = _prepared(found, old, min(cuts.values(), default=math.inf), period, gaps, path)
    panel = _series.Panel(kept, how)
    bounds = [-math.inf, *cuts.values(), math.inf]
    parts: dict[str, Samples] = {}
    for part, since, until in zip(["train", *cuts] if cuts else ["test"], bounds[:-1], bounds[1:], strict=True):
        which, begins = panel.origins(length, ahead, stride, since, until)
        needs = f"{length} steps to know and {ahead} to forecast" if ahead else f"{length} steps in it"
        if not len(which):
            raise DataError(f"{clean(path)}: no series is long enough for {part}: {needs}", "lower context or horizon")
        absent = sorted(set(range(len(kept))) - set(which.tolist()))
        if absent:
            more.append(f"{clean(path)}: {part} is without {listing([kept[i].name for i in absent])}: {needs}")
        parts[part] = _series.Windows(panel, length, ahead, stride, which, begins)
    spec = DataSpec(
        "series",
        {"series": InputSpec((length,))},
        {"future": Target("series", steps=ahead)} if ahead else {},
        {**layout._asdict(), "context": length, "horizon": ahead, "season": period, "series": how},
        "series",
        {part: len(samples) for part, samples in parts.items()},
        _series.described(kept),
    )
    return Data(spec, parts.get("train"), parts.get("val"), parts.get("test"), notes=(*notes, *more))


def _prepared(
    found: Sequence[_series.Series], old: Mapping[str, Any], first: float, season: int, missing: str, path: str
) -> tuple[list[_series.Series], list[dict[str, Any]], list[str]]:
    """Series without gaps, the statistics of each, and notes. Those of a checkpoint's series stay; others get their own,
    of what is before the moment `first`, and are left out where that is nothing."""
    theirs = {one["name"]: one for one in old.get("series", ())}
    kept, how, notes, late = [], list[dict[str, Any]](), list[str](), []
    for one in found:
        one, gaps = _series.filled(one, missing, path)
        if gaps:
            notes.append(f"{clean(path)}: series '{clean(one.name)}': {gaps} missing values are the ones before them")
        before = int((one.moments < first).sum())
        if one.name not in theirs and before < 2:
            late.append(one.name)
            continue
        its = theirs.get(one.name) or {}
        if not its or (season != old["season"] and before > season):
            its = {**_series.statistics(one, first, season), **{key: its[key] for key in ("mean", "std") if its}}
        kept.append(one)
        how.append(dict(its))
    if still := [its["name"] for its in how if not its["naive"]]:
        notes.append(
            f"{clean(path)}: no MASE of {listing(still)}: in training it never differs from a season before, or is shorter"
        )
    if late:
        notes.append(f"{clean(path)}: left out: {listing(late)}, without values in the time of training")
    if not kept:
        raise DataError(f"{clean(path)}: no series has values in the time of training")
    return kept, how, notes


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """The newest rows of each series of each table, from which `predict` tells what comes next."""
    how = spec.preprocessing
    theirs = {one["name"]: one for one in how["series"]}
    layout = _series.Layout(how["time"], None, how["id"], how["value"], how["missing"])
    latest: list[tuple[str, _series.Series, Mapping[str, Any]]] = []
    notes: list[str] = []
    for path in sources:
        found, told = _series.read_series(path, layout)
        strange = [one.name for one in found if one.name not in theirs]
        if 0 < len(strange) < len(found):
            told.append(f"{clean(path)}: left out: {listing(strange)}, which the model was not trained on")
            found = [one for one in found if one.name in theirs]
        elif strange:
            told.append(
                f"{clean(path)}: the model was not trained on {listing(strange)}: scaled by what is in this table"
            )
        for one in found:
            latest.append((path, one, theirs.get(one.name) or _series.statistics(one, math.inf, how["season"])))
        notes += told
    samples = _series.Latest(latest, how["context"], how["missing"])
    samples.notes = tuple(notes)
    return samples


def plot(spec: DataSpec, sources: Sequence[str], rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """What was predicted (`rows`) after the newest values of each series, as a PNG: for `predict --plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib", "pip install 'fmeco[plots]'") from None
    latest = read(spec, sources)
    assert isinstance(latest, _series.Latest)
    shown = range(min(len(latest), SHOWN))
    figure = Figure(figsize=(9, 2.2 * len(shown) + 0.4), layout="constrained")
    for axes, number in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        path, one, _ = latest.latest[number]
        own = [row for row in rows if (row["input"], row["series"]) == (path, one.name)]
        past = one.values[-min(len(one.values), spec.preprocessing["context"]) :]
        axes.plot(range(-len(past), 0), past, color="0.4", linewidth=1)
        if own and own[0]["prediction"] is not None:
            axes.plot([row["prediction"] for row in own], color="C0")
            if own[0].get("low") is not None:
                low, high = ([row[key] for row in own] for key in ("low", "high"))
                axes.fill_between(range(len(own)), low, high, color="C0", alpha=0.25, linewidth=0)
        axes.set_title(f"{one.name}, after {one.times[-1]}", fontsize="small", loc="left")
        axes.axvline(-0.5, color="0.8", linewidth=0.8)
        axes.grid(alpha=0.3)
    axes.set_xlabel("steps from the newest row on")
    figure.savefig(file, dpi=120)


def example(folder: Path) -> dict[str, Any]:
    """Write two short series into a folder, and return the keys that read them: for the checks of plug-ins."""
    file = folder / "series.csv"
    file.write_text("\n".join(["time,a,b", *(f"{i},{i * i % 13},{i % 7}" for i in range(160))]), "utf-8")
    return {"path": str(file), "context": 32, "horizon": 4}
