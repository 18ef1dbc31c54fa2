"""Time series from a CSV, TSV or Parquet table: one per column, or several below one another."""

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
    Given,
    Gt,
    InputSpec,
    Lt,
    Samples,
    Target,
    clean,
    decode_rule,
    listing,
    same_modality,
)
from fmeco.datasets import _gaps, _latest, _series, _stored
from fmeco.datasets._numbers import MISSING, Rules
from fmeco.datasets._numbers import missing_words as words_for_missing

MODALITY = "series"

TAKES = {"rows": "a DataFrame, or dicts with a time and values per row"}
SPEC = _stored.Series
TABLES = True  # with a checkpoint of series, --dataset TABLE reads the table as series
FILES = (".csv", ".tsv", ".parquet")
LAYOUT = ("time", "columns", "id", "value", "context", "horizon", "season", "missing", "missing_words", "fill")

CONTEXT, HORIZON = 336, 96
SHOWN = 12  # most series in one plot


def check(id: str | None, value: str | None, val_fraction: float, test_fraction: float, **_: Any) -> list[str]:
    problems = []
    if (id is None) != (value is None):
        problems.append("`id` and `value` need each other: both name columns of a table with series below one another")
    if val_fraction + test_fraction >= 1:
        problems.append(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on")
    return problems


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[FilePath, Doc("the table, with a header")],
    time: Annotated[str, Doc("column of dates or numbers")] = "time",
    columns: Annotated[
        list[str] | None, Doc("names of the series to use; null = every numeric column, or every `id`")
    ] = None,
    id: Annotated[str | None, Doc("column that names the series of each row, if series are below one another")] = None,
    value: Annotated[str | None, Doc("column of the values, with `id`")] = None,
    context: Annotated[int | None, Doc("steps that the model sees; null = the checkpoint's, else 336"), Gt(1)] = None,
    horizon: Annotated[
        int | None, Doc("steps to forecast; null = the checkpoint's, else 96; 0 = no target, for objective mask"), Ge(0)
    ] = None,
    stride: Annotated[int, Doc("steps from one window to the next"), Gt(0)] = 1,
    season: Annotated[
        int | None,
        Doc("steps of a season, such as 24 for hourly data, for MASE; null = the checkpoint's, else 1"),
        Gt(0),
    ] = None,
    missing: Annotated[
        Literal["error", "previous"] | None,
        Doc("missing values: error, or previous = fill with the value before; null = the checkpoint's, else error"),
    ] = None,
    missing_words: Annotated[
        list[str | int | float] | None,
        Doc(
            "words and numbers for a missing value, such as -9999, compared as text without case; [] = only an empty cell is "
            "missing; null = the checkpoint's, else na, n/a, nan, null, none and ?"
        ),
    ] = None,
    fill: Annotated[
        Literal["forward", "interpolate", "none"] | None,
        Doc(
            "rows that are absent from the regular steps of the times: forward = repeat the value before, interpolate = draw a "
            "line to the value after, none = each row counts as one step; null = the checkpoint's, else refuse them"
        ),
    ] = None,
    val_fraction: Annotated[
        float, Doc("share of the times held out for validation, just before the test split"), Gt(0), Lt(1)
    ] = 0.2,
    test_fraction: Annotated[
        float, Doc("share of the times, the newest, held out for testing; 0 = no test split"), Ge(0), Lt(1)
    ] = 0.2,
) -> Data:
    same_modality(known, "series")
    old: Mapping[str, Any] = known.preprocessing if known is not None else {}
    ahead = horizon if horizon is not None else old.get("horizon") or HORIZON
    length: int = old.get("context", CONTEXT) if context is None else context
    period: int = old.get("season", 1) if season is None else season
    gaps: str = old.get("missing", "error") if missing is None else missing
    rule = decode_rule(known)
    absent_rows = old.get("fill", "none" if rule == 1 else None) if fill is None else fill
    if known is not None and known.targets and (length, ahead) != (old["context"], old["horizon"]):
        raise ConfigError(
            f"dataset.horizon, dataset.context: the checkpoint forecasts {old['horizon']} steps from {old['context']}, "
            f"not {ahead} from {length}",
            "leave both keys out",
        )
    layout = _series.Layout(time, columns, id, value, gaps, absent_rows)
    rules = _rules(old, rule, missing_words)
    series, notes = _read(path, layout, old, rules)
    shares = {"val": val_fraction, "test": test_fraction} if test_fraction else {"val": val_fraction}
    cuts: dict[str, Any] = {}
    if not whole:
        cuts, note = _series.cut_at(series, shares, path)
        notes.append(note)
    kept, statistics, more = _prepared(series, old, min(cuts.values(), default=math.inf), period, path, rule)
    panel = _series.Panel(kept, statistics)
    bounds = [-math.inf, *cuts.values(), math.inf]
    parts: dict[str, Samples] = {}
    for part, since, until in zip(["train", *cuts] if cuts else ["test"], bounds[:-1], bounds[1:], strict=True):
        which, begins = panel.origins(length, ahead, stride, since, until)
        needs = (
            f"a window needs {length} steps of context and {ahead} to forecast"
            if ahead
            else f"a window needs {length} steps"
        )
        if not len(which):
            raise DataError(
                f"{clean(path)}: no series is long enough for {part}: {needs}",
                "lower dataset.context or dataset.horizon",
            )
        absent = sorted(set(range(len(kept))) - set(which.tolist()))
        if absent:
            more.append(f"{clean(path)}: {part} has no window of {listing([kept[i].name for i in absent])}: {needs}")
        parts[part] = _series.Windows(panel, length, ahead, stride, which, begins)
    prep = {**layout._asdict(), "context": length, "horizon": ahead, "season": period, "series": statistics}
    if rule == 1:  # as the checkpoint's code wrote it
        prep = {key: x for key, x in prep.items() if key != "fill" or fill is not None}
    else:
        prep |= {"times": _latest.stored(kept), "decode": rule}
    if rule > 1 or rules.missing != MISSING:
        prep["missing_words"] = sorted(rules.missing - {""})
    spec = DataSpec(
        "series",
        {"series": InputSpec((length,))},
        {"future": Target("series", steps=ahead)} if ahead else {},
        prep,
        "series",
        {part: len(samples) for part, samples in parts.items()},
        _series.described(kept, rule),
    )
    return Data(spec, parts.get("train"), parts.get("val"), parts.get("test"), notes=(*notes, *more))


def _rules(old: Mapping[str, Any], rule: int, words: Sequence[str | float] | None = None) -> Rules:
    """Choose the words for a missing value: the config's, else the checkpoint's (`old`: its preprocessing), else the defaults."""
    return Rules(rule, words_for_missing(old.get("missing_words") if words is None else words))


def _read(
    path: str, layout: _series.Layout, old: Mapping[str, Any], rules: Rules
) -> tuple[list[_series.Series], list[str]]:
    """Read the series of a table, and fill their gaps. Returns (series, notes).

    old: the checkpoint's preprocessing.
    rules: how the cells of the table are read.
    """
    pattern, expected = _latest.known_times(old)
    series, notes = _series.read_series(path, layout, rules, pattern)
    for number, s in enumerate(series):
        series[number], gaps = _gaps.filled(s, layout.missing, path)
        if gaps:
            notes.append(
                f"{clean(path)}: series '{clean(s.name)}': {gaps} missing values are filled with the ones before"
            )
    series, more = _gaps.regular(series, expected, layout.fill, path, named=layout.id is not None)
    return series, [*notes, *more]


def _prepared(
    series: Sequence[_series.Series], old: Mapping[str, Any], first: Any, season: int, path: str, rule: int
) -> tuple[list[_series.Series], list[dict[str, Any]], list[str]]:
    """Find the statistics of each series. Returns (series, statistics, notes).

    Series of the checkpoint (`old`: its preprocessing) keep their statistics. The statistics of other series are computed
    from their values before the moment `first`; series with fewer than two such values are left out.
    Raises DataError if none is left.
    """
    theirs = {x["name"]: x for x in old.get("series", ())}
    kept, statistics, notes, late = [], list[dict[str, Any]](), list[str](), []
    for s in series:
        before = int((s.moments < first).sum())
        if s.name not in theirs and before < 2:
            late.append(s.name)
            continue
        stats = theirs.get(s.name) or {}
        if not stats or (season != old["season"] and before > season):
            stats = {
                **_series.statistics(s, first, season, rule),
                **{key: stats[key] for key in ("mean", "std") if stats},
            }
        kept.append(s)
        statistics.append(dict(stats))
    if still := [stats["name"] for stats in statistics if not stats["naive"]]:
        notes.append(
            f"{clean(path)}: no MASE for {listing(still)}: in training each value equals the one a season before, or the series "
            "is shorter than a season"
        )
    if late:
        notes.append(f"{clean(path)}: left out: {listing(late)}, with fewer than two values in the training period")
    if not kept:
        raise DataError(f"{clean(path)}: no series has two or more values in the training period")
    return kept, statistics, notes


def read(spec: DataSpec, sources: Sequence[str | Given]) -> Samples:
    """Read the newest rows of each series of each table, from which `predict` forecasts."""
    prep = spec.preprocessing
    theirs = {x["name"]: x for x in prep["series"]}
    fill = prep.get("fill", "none" if spec.decode == 1 else None)
    rules = _rules(prep, spec.decode)
    layout = _series.Layout(prep["time"], None, prep["id"], prep["value"], prep["missing"], fill)
    pattern, grid = _latest.known_times(prep)
    latest: list[_latest.Newest] = []
    notes: list[str] = []
    for path in sources:
        series, more = _series.read_series(path, layout, rules, pattern)
        strange = [s.name for s in series if s.name not in theirs]
        if 0 < len(strange) < len(series):
            more.append(f"{clean(path)}: left out: {listing(strange)}, which the model was not trained on")
            series = [s for s in series if s.name in theirs]
        elif strange:
            more.append(
                f"{clean(path)}: the model was not trained on {listing(strange)}: scaled by mean and deviation of this table"
            )
        for s in series:
            stats = theirs.get(s.name) or _series.statistics(s, math.inf, prep["season"], spec.decode)
            one, said = _latest.newest(str(path), s, stats, layout, prep["context"], grid)
            latest.append(one)
            more += said
        notes += more
    samples = _latest.Latest(latest)
    samples.notes = tuple(dict.fromkeys(notes))
    return samples


def plot(spec: DataSpec, sources: Sequence[str | Given], rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plot the predictions (`rows`) after the newest values of each series, as a PNG file; for `predict --plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib", "pip install 'fmeco[plots]'") from None
    latest = read(spec, sources)
    assert isinstance(latest, _latest.Latest)
    shown = range(min(len(latest), SHOWN))
    figure = Figure(figsize=(9, 2.2 * len(shown) + 0.4), layout="constrained")
    for axes, number in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        path, series, _, _ = latest.latest[number]
        own = [row for row in rows if (row["input"], row["series"]) == (path, series.name)]
        past = series.values[-min(len(series.values), spec.preprocessing["context"]) :]
        axes.plot(range(-len(past), 0), past, color="0.4", linewidth=1)
        if own and own[0]["prediction"] is not None:
            axes.plot([row["prediction"] for row in own], color="C0")
            if own[0].get("low") is not None:
                low, high = ([row[key] for row in own] for key in ("low", "high"))
                axes.fill_between(range(len(own)), low, high, color="C0", alpha=0.25, linewidth=0)
        axes.set_title(f"{series.name}, after {series.times[-1]}", fontsize="small", loc="left")
        axes.axvline(-0.5, color="0.8", linewidth=0.8)
        axes.grid(alpha=0.3)
    axes.set_xlabel("steps from the newest row")
    figure.savefig(file, dpi=120)


def example(folder: Path) -> dict[str, Any]:
    """Write two short series into a folder, and return the keys that read them: for the checks of plug-ins."""
    file = folder / "series.csv"
    file.write_text("\n".join(["time,a,b", *(f"{i},{i * i % 13},{i % 7}" for i in range(160))]), "utf-8")
    return {"path": str(file), "context": 32, "horizon": 4}
