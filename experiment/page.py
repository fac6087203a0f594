"""``report.html``: a run to look at, in one file that opens from the disk and asks no network.

python -m experiment.page runs/NAME [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from threadpoolctl import threadpool_limits

import utils
from dataloader import IGNORE_LABEL
from experiment import calibration, svg
from experiment.comparison import Predictions, aligned, distinct_names
from experiment.insight import Insight, by_group, changed_settings, gather, over_folds, resample
from experiment.palette import colour, marker, plain
from experiment.run_directory import read_config, unguarded
from experiment.start import ending
from files import InputError, WriteError, complain, printable, replacing, say, spare

NAME = "report.html"
MATRIX = 20  # classes at most in the confusion matrix; of more, those with the most utterances
PROBABILITIES = 12  # classes at most whose every probability is kept; of more, the likeliest
LIKELIEST = 6
GROUPS = 200  # speakers at most in the table
CURVES = 400  # points at most of a curve
LONGEST = 20_000  # characters of a sentence that are kept


# Data for the script of the page --------------------------------------------------------------------------------------


def as_json(content: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark, escaped in (
        *(("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")),
        *(("\u2028", "\\u2028"), ("\u2029", "\\u2029")),
    ):
        text = text.replace(mark, escaped)
    return Markup(text.encode("utf-8", "replace").decode("utf-8"))


def thousandths(values: Sequence[float]) -> list[int | None]:
    """Numbers in whole thousandths; None for what is not finite."""
    return [round(1000 * float(x)) if math.isfinite(x) else None for x in values]


def browser_data(seen: Insight) -> dict[str, Any]:
    """The utterances for the conversation browser, column by column and in dialogue order."""
    table, p = seen.table, seen.probabilities
    numbers, ids = pd.factorize(table["dialogue"])
    speakers, people = pd.factorize(table["speaker"])
    classes = p.shape[1]
    every = classes <= PROBABILITIES
    if every:
        shown = [thousandths(row) for row in p]
    else:  # the likeliest, as class, probability, class, probability …
        top = np.argsort(-p, axis=1, kind="stable")[:, :LIKELIEST]
        shown = [
            [x for k, v in zip(row.tolist(), thousandths(p[i, row]), strict=True) for x in (k, v)]
            for i, row in enumerate(top)
        ]
    neighbours = [[[int(o), *thousandths([v])] for o, v in each] for each in seen.neighbours]
    return {
        "classes": [plain(name) for name in seen.label_names],
        "dialogues": [plain(i, 200) for i in ids],
        "people": [plain(i, 80) for i in people],
        "d": numbers.tolist(),
        "speaker": speakers.tolist(),
        "label": table["label"].tolist(),
        "predicted": table["predicted"].tolist(),
        "name": [plain(u, 200) for u in table["utterance"]],
        "text": [str(s)[:LONGEST] for s in table["sentence"]],
        "p": shown,
        "every": every,
        "confidence": thousandths(seen.confidence),
        "modalities": {m: thousandths(values) for m, values in seen.modalities.items()},
        "neighbours": neighbours,
    }


def style_data(label_names: Sequence[str]) -> dict[str, Any]:
    """Colour and marker of every class."""
    count = range(len(label_names))
    return {"colours": [colour(i) for i in count], "markers": [marker(i) for i in count]}


# Parts ----------------------------------------------------------------------------------------------------------------


def headline(seen: Insight) -> dict[str, Any]:
    """The figure, and what must be known to read it. Of several runs it is their mean: an ensemble's is said below."""
    scores, interval, spread = seen.scores, None, None
    count = seen.table["dialogue"].nunique()
    if count > 1:
        labels, predicted = (seen.table[c].to_numpy() for c in ("label", "predicted"))
        interval = resample(seen.table["dialogue"], labels, predicted, len(seen.label_names)).interval()
    lines = []
    if seen.members:
        means = of_members(seen)
        lines.append(_of_members(seen, scores, interval))
        scores, interval, spread = means.mean(), None, utils.deviation(means["weighted_f1"])
    elif "best_epoch" in seen.report:
        lines.append(_kept(seen))
    if on_test := seen.report.get("chosen_on_test"):
        lines.append(
            f"Chosen on test, as much of the field reports: {on_test.get('weighted_f1', math.nan):.2f}, epoch "
            f"{on_test.get('epoch', 0):.0f}. The figure above does not look at test to choose."
        )
    if said := seen.report.get("interrupted"):
        lines.append(f"Interrupted at {said}: this is not the whole run.")
    data = seen.config.get("features") if isinstance(seen.config.get("features"), dict) else {}
    demo = bool(seen.settings.get("data", {}).get("demo"))
    return {
        "f1": scores.get("weighted_f1"),
        "macro": scores.get("macro_f1"),
        "accuracy": scores.get("accuracy"),
        "interval": interval,
        "spread": spread,
        "runs": len(seen.members),
        "dialogues": count,
        "utterances": len(seen.table),
        "data": "synthetic corpus" if demo else Path(str(data.get("file", "unknown"))).name,
        "demo": demo,
        "lines": lines,
    }


def of_members(seen: Insight) -> pd.DataFrame:
    """Weighted F1, macro F1 and accuracy of every run; of seeds of folds, of every seed: the means over its folds."""
    names = ["weighted_f1", "macro_f1", "accuracy"]
    rows = {name: {k: report["test"].get(k, math.nan) for k in names} for name, report in seen.members.items()}
    return over_folds(pd.DataFrame.from_dict(rows, orient="index", columns=names).astype(float))


def _kept(seen: Insight) -> str:
    """How the epoch was kept, and what that says of the curves."""
    epoch, last = seen.report["best_epoch"], len(seen.histories.get("classifier", ())) or "?"
    if seen.report.get("valid"):
        return (
            f"Seed {seen.config.get('seed', '?')}. Kept: epoch {epoch} of {last}, the best on the validation "
            f"dialogues: weighted F1 {seen.report['valid'].get('weighted_f1', math.nan):.2f}."
        )
    return (
        f"Seed {seen.config.get('seed', '?')}. Kept: epoch {epoch}, the last, where the schedule ends. Nothing was "
        "held out, so no curve of this run is of dialogues it did not learn from."
    )


def _of_members(seen: Insight, scores: Mapping[str, Any], interval: tuple[float, float] | None) -> str:
    """Which runs they are, and what they come to together."""
    plan = seen.config.get("plan") if isinstance(seen.config.get("plan"), dict) else {}
    words = [f"seeds {', '.join(map(str, plan['seeds']))}"] if plan.get("seeds") else []
    words += [f"folds over {plan['folds']}"] if plan.get("folds") else []
    said = f"{len(seen.members)} runs, {'; '.join(words) or 'of a plan'}."
    if not scores:
        return said
    kind = "All networks as one, an ensemble (the mean of the probabilities of all runs that scored an utterance)"
    if not any(name.startswith("seed") for name in seen.members):
        kind = "All folds together, every utterance once, scored by the run that held it out"
    over = f", 95 % interval over dialogues {interval[0]:.1f} to {interval[1]:.1f}" if interval else ""
    return f"{said} {kind}: weighted F1 {scores['weighted_f1']:.2f}{over}. This is what the parts below are of."


def facts(seen: Insight) -> dict[str, str]:
    """What the run is."""
    config, report = seen.config, seen.report
    versions = config.get("versions") if isinstance(config.get("versions"), dict) else {}
    features = config.get("features") if isinstance(config.get("features"), dict) else {}
    corpus = config.get("corpus") if isinstance(config.get("corpus"), dict) else {}
    seconds = report.get("seconds") if isinstance(report.get("seconds"), dict) else {}
    splits = config.get("splits") if isinstance(config.get("splits"), dict) else {}
    dims = corpus.get("dims") if isinstance(corpus.get("dims"), dict) else {}
    found = {
        "data": features.get("file"),
        "SHA-256 of the data": features.get("sha256"),
        "features": ", ".join(f"{m} {d}" for m, d in dims.items()),
        "dialogues": ", ".join(f"{len(ids)} {split}" for split, ids in splits.items() if isinstance(ids, list)),
        "device": config.get("device"),
        "parameters": f"{report['parameters']:,}" if isinstance(report.get("parameters"), int) else None,
        "time": f"{seconds['total']:.0f} s" if isinstance(seconds.get("total"), (int, float)) else None,
        "finished": report.get("finished_at"),
        "commit": config.get("git_commit"),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
    }
    return {name: str(value) for name, value in found.items() if value}


def class_rows(seen: Insight) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; F1 with the 95 % interval over dialogues, of several runs ± too."""
    per_class = seen.scores.get("per_class")
    if not isinstance(per_class, dict):
        return []
    low = high = None
    if len(seen.table) and seen.table["dialogue"].nunique() > 1:
        labels, predicted = (seen.table[c].to_numpy() for c in ("label", "predicted"))
        f1 = resample(seen.table["dialogue"], labels, predicted, len(seen.label_names)).f1
        low, high = np.percentile(f1, [2.5, 97.5], axis=0)
    rows = []
    for i, (name, row) in enumerate(per_class.items()):
        if not isinstance(row, dict):
            continue
        each = {n: r["test"]["per_class"][name]["f1"] for n, r in seen.members.items() if name in _per_class(r)}
        each = over_folds(pd.Series(each, dtype=float))
        rows.append(
            {
                "i": i,
                "name": plain(name),
                **{k: row.get(k) for k in ("precision", "recall", "f1", "support")},
                "interval": None if low is None else (float(low[i]), float(high[i])),
                "mean": float(each.mean()) if len(each) else None,
                "deviation": utils.deviation(each),
            }
        )
    return rows


def _per_class(report: Mapping[str, Any]) -> Mapping[str, Any]:
    found = report.get("test", {}).get("per_class")
    return found if isinstance(found, dict) else {}


def reliability_part(seen: Insight) -> dict[str, Any]:
    """The reliability diagram, and what the report says of calibration: a row a figure, before and after."""
    labels = seen.table["label"].to_numpy()
    found: dict[str, Any] = {
        "svg": svg.reliability(calibration.reliability(labels, seen.probabilities)),
        "error": 100 * calibration.expected_calibration_error(labels, seen.probabilities),
        "rows": [],
        "about": "",
    }
    said = seen.report.get("calibration")
    if not isinstance(said, dict) or not isinstance(said.get("before"), dict):
        return found
    after = said.get("after") or {}
    for key, name, form, scale in (
        ("expected_calibration_error", "expected calibration error (%)", ".1f", 100),
        ("brier_score", "Brier score", ".3f", 1),
        ("negative_log_likelihood", "negative log-likelihood (nats)", ".3f", 1),
    ):
        values = [_shown(scale * float(side[key]), form) if key in side else "–" for side in (said["before"], after)]
        found["rows"].append({"name": name, "before": values[0], "after": values[1]})
    if said.get("temperature") is not None:
        found["about"] = (
            f"Temperature {said['temperature']:.2f}, fitted on {said['utterances']} utterances of {said['dialogues']} "
            f"dialogues ({said['fitted_on']}). All probabilities on this page are those after it."
        )
    elif after:
        found["about"] = "Each network has its own temperature. All probabilities on this page are those after it."
    else:
        found["about"] = (
            "The probabilities are uncalibrated: the run had no dialogues to fit a temperature on. Train with "
            "--valid 0.1 or --calibrate 5 to have some."
        )
    return found


def matrix_part(seen: Insight) -> dict[str, Any] | None:
    """The confusion matrix, of at most `MATRIX` classes, and what is most often taken for what."""
    counts = seen.scores.get("confusion_matrix")
    try:
        counts = np.array(counts, dtype=int)
    except (TypeError, ValueError):
        return None
    if counts.ndim != 2 or counts.shape != (len(seen.label_names),) * 2 or not counts.size:
        return None
    kept = np.arange(len(counts))
    if len(kept) > MATRIX:
        kept = np.sort(np.argsort(-counts.sum(1), kind="stable")[:MATRIX])
    total = counts.sum(1).clip(min=1)
    off = [(int(counts[i, j]), i, j) for i, j in np.argwhere(counts) if i != j]
    worst = [{"count": n, "true": int(i), "said": int(j)} for n, i, j in sorted(off, key=lambda x: -x[0])[:12]]
    rows = [
        {
            "i": int(i),
            "cells": [{"j": int(j), "count": int(counts[i, j]), "share": float(counts[i, j] / total[i])} for j in kept],
        }
        for i in kept
    ]
    return {"columns": kept.tolist(), "rows": rows, "worst": worst, "of": len(counts)}


def figures_of_curves(seen: Insight) -> list[dict[str, Any]]:
    """The curves of both stages."""
    found = []

    def add(title: str, stage: str, columns: Mapping[str, str], label: str, about: str = "", **marks: Any) -> None:
        rows = seen.histories.get(stage, [])
        step = max(1, math.ceil(len(rows) / CURVES))
        series = {
            name: [(row["epoch"], row[column]) for row in rows[::step]]
            for column, name in columns.items()
            if rows and column in rows[0]
        }
        figure = svg.curves(series, ("epoch", label), title, **marks)
        if figure:
            found.append({"title": title, "svg": figure, "about": about})

    first = (seen.histories.get("adversarial") or [{}])[0]
    for kind, title, even in zip("GD", ("generators", "discriminators"), seen.even, strict=True):
        columns = {c: c.split("_")[0] for c in first if c.endswith(f"_{kind}_loss")}
        level = (even, f"neither side wins ({even:.2f})")
        add(f"Stage 1: losses of the {title}", "adversarial", columns, "adversarial loss (nats)", level=level)
    for kind, about in (
        ("contrastive", "How badly fused features find those of the same utterance's other modalities (InfoNCE)."),
        ("translation", "Error of the other modalities' features, made from the shared channels."),
        ("reconstruction", "Error of a modality's own features, rebuilt from the fused ones."),
    ):
        columns = {c: c.split("_")[0] for c in first if c.endswith(f"_{kind}")}
        add(f"Stage 1: {kind}", "adversarial", columns, kind, about)
    for kind, label in (("loss", "loss (nats)"), ("weighted_f1", "weighted F1 (%)")):
        columns = {f"{s}_{kind}": s for s in ("train", "valid", "test")}
        kept = seen.report.get("best_epoch")
        marks = {"upright": (kept, f"kept: epoch {kept}")} if isinstance(kept, int) else {}
        about = "Training is scored while it learns: on augmented features, with labels smoothed in the loss."
        add(f"Stage 2: {label.split(' (')[0]}", "classifier", columns, label, about, **marks)
    return found


def figures_of_maps(seen: Insight) -> list[dict[str, Any]]:
    """The maps."""
    found = []
    for one, what, kinds in (
        (seen.map("fused_features"), "Fused features", ("emotion", "modality")),
        (seen.map("last_layer"), "Last layer", ("emotion",)),
    ):
        for kind in kinds if one else ():
            group, names = one.groups[kind]
            title = f"{what} by {kind}"
            found.append({"title": title, "about": one.about, "svg": svg.scatter(one.points, group, names, title)})
    return found


def flags_text(seen: Insight) -> list[str]:
    """The flags that differ from the defaults, as they are typed."""

    def one(flag: str, value: Any) -> str:
        if isinstance(value, bool):
            return flag if value else flag.replace("--", "--no-", 1)
        if isinstance(value, dict):
            value = ",".join(f"{k}:{v}" for k, v in value.items())
        return f"{flag} {','.join(map(str, value)) if isinstance(value, tuple) else value}"

    return [one(flag, value) for flag, value in changed_settings(seen).items()] if seen.settings else []


# Pages ----------------------------------------------------------------------------------------------------------------


def _shown(number: float | None, form: str) -> str:
    return "–" if number is None or not math.isfinite(number) else format(number, form).replace("-", "−")


@cache
def environment() -> Environment:
    """Jinja2 with every value escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals |= {"swatch": svg.swatch, "symbols": svg.symbols, "as_json": as_json}
    for name, form in (("percent", ".1f"), ("two", ".2f"), ("signed", "+.1f")):
        made.filters[name] = partial(_shown, form=form)
    return made


def render(seen: Insight) -> str:
    """The page of a run, or of several of a plan taken together."""
    scored = bool(len(seen.table))
    part = seen.attempt
    groups = part("speakers", lambda: {k: by_group(seen, k) for k in ("speaker", "session")}) if scored else {}
    spread = None
    if seen.members:
        values = {n: float(r["test"].get("weighted_f1", math.nan)) for n, r in seen.members.items()}
        values = {n: v for n, v in values.items() if math.isfinite(v)}
        means = over_folds(pd.Series(values, dtype=float))
        about = means.mean(), utils.interval(means), "weighted F1 (%)", "Weighted F1 of every run"
        spread = part("spread", lambda: svg.dots(values, *about))
    content = {
        "title": plain(seen.directory.resolve().name or "run", 80),
        "head": part("headline", lambda: headline(seen)),
        "facts": part("facts", lambda: facts(seen)) or {},
        "flags": part("flags", lambda: flags_text(seen)) or [],
        "classes": part("classes", lambda: class_rows(seen)) or [],
        "names": [plain(name) for name in seen.label_names],
        "matrix": part("confusion matrix", lambda: matrix_part(seen)),
        "reliability": part("reliability", lambda: reliability_part(seen)) if scored else None,
        "curves": part("curves", lambda: figures_of_curves(seen)) or [],
        "maps": part("maps", lambda: figures_of_maps(seen)) or [],
        "groups": {kind: rows[:GROUPS] for kind, rows in (groups or {}).items() if rows},
        "members": _member_rows(seen),
        "spread": spread,
        "data": part("conversations", lambda: browser_data(seen) | style_data(seen.label_names)) if scored else None,
        "decided": bool(seen.modalities or any(seen.neighbours)),
        "transcripts": scored and any(seen.table["sentence"]),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "problems": [plain(line, 400) for line in dict.fromkeys(seen.problems)],
    }
    return environment().get_template("report.html.j2").render(content)


def _member_rows(seen: Insight) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "href": f"{name}/{NAME}" if (seen.directory / name / NAME).exists() else None,
            **{k: report["test"].get(k) for k in ("weighted_f1", "macro_f1", "accuracy", "loss")},
        }
        for name, report in seen.members.items()
    ]


@threadpool_limits.wrap(limits=1)  # as `leave_a_look`, with the same bits
def write_page(directory: Path, *, out: Path | None = None, seen: Insight | None = None) -> Path:
    """Make the page of a run. Returns where it is.

    Args:
        directory: Of the run, or of several of a plan.
        out: Where the page goes; ``report.html`` in the run unless given.
        seen: What there is to see, if it has been gathered.

    Raises:
        InputError: If there is no such directory, or the page can be written nowhere, or would be over what it is of.
    """
    directory = Path(directory)
    if seen is None:
        if not directory.is_dir():
            raise InputError(f"{directory}: no directory of a run; name one")
        seen = gather(directory)
    if out and out.absolute() != (directory / NAME).absolute():
        settings = seen.config.get("settings")
        data = settings.get("data") if isinstance(settings, dict) else None
        features = data.get("features") if isinstance(data, dict) else None
        spare([directory, *([Path(features)] if isinstance(features, str) else [])], out)
    return _write(render(seen), out or directory / NAME, elsewhere=out is None)


def _write(text: str, path: Path, *, elsewhere: bool) -> Path:
    """Write a page; where its folder cannot be written, beside the other temporary files."""
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")
    except WriteError as error:
        if not elsewhere:
            raise
        other = Path(tempfile.mkdtemp(prefix="gan-ffn-")) / path.name
        other.write_text(text, encoding="utf-8", errors="replace")
        complain(f"{error}; the page is {other}")
        return other
    return path


# Several runs side by side --------------------------------------------------------------------------------------------


def comparison_page(
    runs: Sequence[Predictions], tables: Mapping[str, pd.DataFrame], directories: Sequence[Path], out: Path
) -> Path:
    """Make the page of several runs: their differences from the first, per class, and where they differ.

    Args:
        runs: Two or more, the tables of others among them.
        tables: What `compare` makes of them.
        directories: Of the first of the runs, for what they were.
        out: Where the page goes.

    Raises:
        InputError: If the page cannot be written.
    """
    runs, names = aligned(runs), [plain(name, 60) for name in distinct_names(runs)]
    first, label_names = runs[0].table, runs[0].label_names
    labels, said = first["label"].to_numpy(int), np.stack([run.together for run in runs])
    configs = [read_config(d) for d in directories]
    scores, differences = (
        {m: part.to_dict("records") for m, part in tables[name].groupby("measure")}
        for name in ("scores", "differences")
    )

    def each(measure: str) -> list[dict[str, Any]]:
        """What every run scores, and how far that is from the first."""
        apart = [None, *differences[measure]]
        return [{**score, "apart": other} for score, other in zip(scores[measure], apart, strict=True)]

    flags = [flags_text(Insight(*each)) for each in zip(directories, configs, strict=False)]
    alike = set(flags[0]).intersection(*flags[1:]) if len(flags) > 1 else set()
    rows = [
        {
            **score,
            "name": names[i],
            "flags": " ".join(f for f in flags[i] if f not in alike) if i < len(flags) else "not a run of ours",
            "members": len(runs[i].members),
        }
        for i, score in enumerate(each("weighted F1"))
    ]
    classes = [
        {"i": k, "name": plain(name), "support": int((labels == k).sum()), "each": each(f"F1 {name}")}
        for k, name in enumerate(label_names)
    ]
    differ = np.flatnonzero((said != said[0]).any(0) & (labels != IGNORE_LABEL))
    kept = first.iloc[differ]
    sentences = kept["sentence"] if "sentence" in kept else [""] * len(kept)
    data = {
        "classes": [plain(n) for n in label_names],
        "runs": names,
        "dialogue": [plain(d, 200) for d in kept["dialogue"]],
        "name": [plain(u, 200) for u in kept["utterance"]],
        "speaker": [plain(s, 80) for s in kept["speaker"]],
        "text": [unguarded(str(s))[:LONGEST] for s in sentences],
        "label": labels[differ].tolist(),
        "said": said[:, differ].tolist(),
        **style_data(label_names),
    }
    content = {
        "title": plain(" and ".join(names), 120),
        "rows": rows,
        "classes": classes,
        "differ": len(differ),
        "utterances": int((labels != IGNORE_LABEL).sum()),
        "dialogues": first["dialogue"].nunique(),
        "demo": any(config["settings"].get("data", {}).get("demo") for config in configs),
        "data": data,
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }
    return _write(environment().get_template("comparison.html.j2").render(content), Path(out), elsewhere=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page of a run again. Returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiment.page", description="Make the page of a run again.")
    parser.add_argument("run", metavar="RUN", help="the directory of a run, or of several of a plan")
    parser.add_argument("--out", metavar="FILE", help=f"where the page goes (default: {NAME} in the run)")
    given = parser.parse_args(argv)
    out = Path(given.out) if given.out else None
    return ending(lambda: say(printable(str(write_page(Path(given.run), out=out)), None)))


if __name__ == "__main__":
    sys.exit(main())
