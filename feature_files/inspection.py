"""What a feature file is: counts, ranges, and what is suspicious about it, as numbers, lines and a picture."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataloader import Corpus, Dialogue, row_blocks
from feature_files import download
from feature_files.checks import LAYOUTS
from feature_files.reading import checked, identify
from feature_files.sources import Source, is_folder
from files import InputError, printable, replacing

FOLDS = 5
BETRAYED = 0.15  # of F1: how far a probe's score on unseen train dialogues may be above that on test
TOO_GOOD = 0.9  # F1 of a linear probe that no honest features of emotion have reached
MAPPED = 2000  # utterances that a map shows
WIDEST_MAP = 8192  # features that a map is made from, drawn from the others
DRAWN = 30  # classes whose names a picture has room for
PROBED = (3e7, 4500)  # values, and the smaller of utterances and features, that a probe takes half a minute for


def describe(corpus: Corpus) -> dict[str, Any]:
    """A corpus in numbers, with a list of warnings; ready for JSON."""
    splits = {name: corpus.split(name) for name in ("train", "valid", "test") if name in corpus.splits}
    names = {speaker for d in corpus.dialogues.values() for speaker in d.speakers}
    lengths = [len(d) for d in corpus.dialogues.values()]
    inside = {i for ids in corpus.splits.values() for i in ids}
    outside = [i for i in corpus.dialogues if i not in inside]
    probes = {m: _probe(splits, m) for m in corpus.dims}
    return {
        "modalities": corpus.dims,
        "dialogues": {name: len(members) for name, members in splits.items()},
        "utterances": {name: sum(map(len, members)) for name, members in splits.items()},
        "in_no_split": len(outside),
        "unlabelled": sum(int((d.labels < 0).sum()) for d in corpus.dialogues.values()),
        "dialogue_lengths": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
        "classes": corpus.num_classes,
        "label_names": list(corpus.label_names),
        "class_counts": {name: _counts(members, corpus.num_classes) for name, members in splits.items()},
        "speakers": len(names),
        "ranges": {m: _range(corpus, m) for m in corpus.dims},
        "probe": {m: scores for m, scores in probes.items() if scores},
        "warnings": [
            *([f"{len(outside)} dialogues are in no split, such as {outside[0]!r:.80}"] if outside else []),
            *_columns(corpus, splits),
            *_duplicates(corpus),
            *_betrayals(probes),
        ],
    }


def _counts(dialogues: list[Dialogue], classes: int) -> list[int]:
    labels = np.concatenate([d.labels for d in dialogues]) if dialogues else np.zeros(0, np.int64)
    return np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes).tolist()


def _rows(dialogues: list[Dialogue], modality: str) -> np.ndarray:
    return np.concatenate([d.features[modality] for d in dialogues])


def _there(rows: np.ndarray) -> np.ndarray:
    """True at rows that are not NaN throughout, bool ``[n]``."""
    return ~np.isnan(rows).all(1)


def _range(corpus: Corpus, modality: str) -> dict[str, float]:
    def finite() -> Iterator[np.ndarray]:  # a block at a time: a file may be larger than memory
        blocks = row_blocks([d.features[modality] for d in corpus.dialogues.values()])
        return (values for rows in blocks if (values := rows[np.isfinite(rows)]).size)

    parts = [(x.min(), x.max(), x.sum(), x.size) for x in finite()]
    if not parts:
        return {"min": 0.0, "max": 0.0, "mean": 0.0, "sd": 0.0}
    low, high, totals, counts = zip(*parts, strict=True)
    mean = sum(totals) / sum(counts)
    variance = sum(np.square(x - mean).sum() for x in finite()) / sum(counts)
    return {"min": min(low), "max": max(high), "mean": mean, "sd": np.sqrt(variance)}


def _columns(corpus: Corpus, splits: dict[str, list[Dialogue]]) -> list[str]:
    """Rows that are missing, and columns that hold NaN, or that tell nothing since they never change."""
    lines = []
    filled = len(corpus.dims) > 1 and len(set(corpus.dims.values())) == 1  # by zeros, as `--export-fused` does
    for modality, width in corpus.dims.items():
        arrays = [d.features[modality] for d in splits.get("train") or corpus.dialogues.values()]
        broken, constant, first, kept = np.zeros(width, bool), np.ones(width, bool), None, 0
        for block in row_blocks(arrays):
            rows = block[_there(block)]
            if len(rows):
                first, kept = rows[0] if first is None else first, kept + len(rows)
                broken |= ~np.isfinite(rows).all(0)
                constant &= (rows == first).all(0)
        if kept < (total := sum(map(len, arrays))):
            lines.append(f"{modality}: {total - kept} of {total} utterances lack it in train")
        if broken.any():
            lines.append(f"{modality}: {broken.sum()} of {width} columns hold NaN or infinity in train")
        if filled and kept and len(used := np.flatnonzero(~constant | (first != 0))):
            constant[used[-1] + 1 :] = False
        if constant.any() and kept > 1:
            lines.append(f"{modality}: {constant.sum()} of {width} columns are constant in train")
    return lines


def _duplicates(corpus: Corpus) -> list[str]:
    """Utterances of one name, or of equal features in every one of two modalities or more."""
    names = Counter(u for d in corpus.dialogues.values() for u in d.utterances)
    lines = []
    if twice := [u for u, times in names.items() if times > 1]:
        lines.append(f"{len(twice)} utterance ids are there more than once, such as {twice[0]!r:.80}")
    if len(corpus.dims) < 2:  # "Yeah." said twice has the same text features, and rightly so
        return lines
    split_of = {i: name for name, ids in corpus.splits.items() for i in ids}
    places: dict[bytes, set[str]] = {}
    copies = 0
    for i, dialogue in corpus.dialogues.items():
        enough = sum(_there(dialogue.features[m]).astype(int) for m in corpus.dims) > 1
        for row in np.concatenate([dialogue.features[m] for m in corpus.dims], axis=1)[enough]:
            where = places.setdefault(hashlib.sha256(row).digest(), set())
            copies += bool(where)
            where.add(split_of.get(i, "no split"))
    shared = sum({"train", "test"} <= where for where in places.values())
    if copies:
        lines.append(f"{copies} utterances have the features of another one; {shared} are so shared by train and test")
    return lines


def _probe(splits: dict[str, list[Dialogue]], modality: str) -> dict[str, float] | None:
    """Weighted F1 of a linear classifier on train dialogues it has not seen, and on test."""
    train, test = splits.get("train", []), splits.get("test", [])
    if len(train) < FOLDS or not test:
        return None
    n, width = sum(map(len, train)), train[0].features[modality].shape[1]
    if n * width > PROBED[0] or min(n, width) > PROBED[1]:
        return None
    x, labels = _rows(train, modality), np.concatenate([d.labels for d in train])
    x_test, y_test = _rows(test, modality), np.concatenate([d.labels for d in test])
    groups = np.repeat(np.arange(len(train)), [len(d) for d in train])
    there, there_test = _there(x) & (labels >= 0), _there(x_test) & (y_test >= 0)
    x, labels, groups, x_test, y_test = x[there], labels[there], groups[there], x_test[there_test], y_test[there_test]
    if len(set(groups.tolist())) < FOLDS or not len(y_test):
        return None
    if len(set(labels.tolist())) < 2 or not np.isfinite(x).all() or not np.isfinite(x_test).all():
        return None
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=x.shape[1]))
    guessed = cross_val_predict(probe, x.astype(np.float64), labels, groups=groups, cv=GroupKFold(FOLDS))
    on_test = probe.fit(x.astype(np.float64), labels).predict(x_test.astype(np.float64))
    return {
        "train": f1_score(labels, guessed, average="weighted"),
        "test": f1_score(y_test, on_test, average="weighted"),
    }


def _betrayals(probes: dict[str, dict[str, float] | None]) -> list[str]:
    lines = []
    for modality, scores in probes.items():
        if scores and scores["train"] > scores["test"] + BETRAYED:
            lines.append(
                f"{modality}: a linear probe scores F1 {scores['train']:.2f} on unseen train dialogues and "
                f"{scores['test']:.2f} on test: the features may have been made with train's labels"
            )
        elif scores and min(scores.values()) > TOO_GOOD:
            lines.append(
                f"{modality}: a linear probe scores F1 {scores['test']:.2f} on test: the features may have been made "
                "with the labels of both splits"
            )
    return lines


def as_text(report: dict[str, Any]) -> str:
    """A report for people: one fact a line, warnings last."""
    lines = [
        f"file        {printable(report['file'], 1000)}",
        f"layout      {report['layout']}, {report['layout_name']}"
        + (f", known as {report['known_as']!r}" if report["known_as"] else ""),
        "modalities  " + ", ".join(f"{m} {d}" for m, d in report["modalities"].items()),
        f"speakers    {report['speakers']}",
        "utterances  {min} to {max} a dialogue, median {median:g}".format(**report["dialogue_lengths"]),
    ]
    for split, dialogues in report["dialogues"].items():
        lines.append(f"{split:<11} {dialogues} dialogues, {report['utterances'][split]} utterances")
    if report["in_no_split"]:
        lines.append(f"no split    {report['in_no_split']} dialogues")
    if report["unlabelled"]:
        lines.append(f"no label    {report['unlabelled']} utterances")
    lines += ["", f"{'class':<16}" + "".join(f"{split:>16}" for split in report["class_counts"])]
    for k, name in enumerate(report["label_names"]):
        cells = ((counts[k], sum(counts)) for counts in report["class_counts"].values())
        lines.append(f"{k} {name:<14}" + "".join(f"{n:>8} {n / max(1, total):>7.1%}" for n, total in cells))
    lines += ["", f"{'features':<12}{'min':>11}{'max':>11}{'mean':>11}{'sd':>11}   linear probe, weighted F1"]
    for modality, values in report["ranges"].items():
        probe = report["probe"].get(modality)
        shown = (
            "train {train:.2f} (cross-validated), test {test:.2f}".format(**probe)
            if probe
            else "too little data, or too much"
        )
        lines.append(f"{modality:<12}" + "".join(f"{x:>11.4g}" for x in values.values()) + f"   {shown}")
    lines += ["", f"sha256      {report['sha256']}"]
    if report["git_blob"]:
        lines.append(f"git blob    {report['git_blob']}")
    lines += [f"provenance  {printable(line, 300)}" for line in provenance_lines(report["provenance"])]
    lines += [f"warning     {printable(line, 1000)}" for line in report["warnings"]]
    return "\n".join(lines)


def provenance_lines(value: Any, name: str = "") -> list[str]:
    """A file's own word on where it comes from, a leaf a line; what it says is quoted, for anyone may have written it.

    Args:
        value: Of JSON.
        name: The path to it.
    """
    if isinstance(value, dict) and value and name.count(".") < 4:
        pairs = list(value.items())[:50]
        return [line for key, item in pairs for line in provenance_lines(item, f"{name}.{key!s:.60}".lstrip("."))]
    return [f"{ascii(name)[1:-1]}: {ascii(value)[:200]}"] if value not in ({}, [], "") else []


def draw(corpus: Corpus, path: Path) -> None:
    """Draw class shares, dialogue lengths, and a map of each modality by class.

    Args:
        corpus: What to draw.
        path: The picture, in a format its name tells.
    """
    maps = list(corpus.dims)
    figure = Figure(figsize=(4.4 * max(2, len(maps)), 8.4), layout="constrained")
    figure.suptitle(_drawable(Path(corpus.name).name))
    names = [_drawable(name) for name in corpus.label_names] if corpus.num_classes <= DRAWN else []
    rows = figure.subfigures(2, 1)
    shares, lengths = rows[0].subplots(1, 2)
    splits = [name for name in ("train", "valid", "test") if corpus.splits.get(name)]
    positions, width = np.arange(corpus.num_classes), 0.8 / max(1, len(splits))
    bins = np.linspace(0, max(map(len, corpus.dialogues.values())) + 1, 25)
    for k, name in enumerate(splits):
        members, grey = corpus.split(name), {"train": "0.25", "valid": "0.5", "test": "0.75"}[name]
        counts = np.array(_counts(members, corpus.num_classes))
        shares.bar(
            positions + (k - (len(splits) - 1) / 2) * width, counts / counts.sum(), width, color=grey, label=name
        )
        lengths.hist([len(d) for d in members], bins=bins, color=grey, histtype="step", linewidth=2, label=name)
    shares.set(title="Share of each class", ylabel="share of the split's utterances")
    if names:
        shares.set_xticks(positions, names, rotation=30, ha="right")
    else:
        shares.set_xlabel("number of the class")
    lengths.set(title="Length of dialogues", xlabel="utterances", ylabel="dialogues")
    lengths.yaxis.set_major_locator(MaxNLocator(integer=True))
    if splits:
        rows[0].legend(*shares.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)

    dialogues = list(corpus.dialogues.values())
    labels = np.concatenate([d.labels for d in dialogues])
    colours = [f"C{k % 10}" for k in range(corpus.num_classes)]
    for axes, modality in zip(np.atleast_1d(rows[1].subplots(1, len(maps))), maps, strict=True):
        x = _rows(dialogues, modality)
        usable = np.flatnonzero(np.isfinite(x).all(1))
        rng = np.random.default_rng(0)
        shown = rng.permutation(usable)[:MAPPED]
        columns = np.sort(rng.permutation(x.shape[1])[:WIDEST_MAP])
        if len(shown) > 1 and (x[shown] != x[shown[0]]).any():
            # Clipped, since a few utterances far out would otherwise be the first component.
            standard = StandardScaler().fit_transform(x[np.ix_(shown, columns)].astype(np.float64)).clip(-3, 3)
            flat = PCA(min(2, *standard.shape), random_state=0).fit_transform(standard)
            flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
            for k, colour in enumerate(colours):
                points = flat[labels[shown] == k]
                axes.scatter(*points.T, s=6, alpha=0.6, linewidths=0, color=colour)
            low, high = np.percentile(flat, [0.5, 99.5], axis=0)  # a few far points would hide the rest
            if (high > low).all():
                margin = 0.1 * (high - low)
                axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
        axes.set(title=f"{modality}, {corpus.dims[modality]} features", xlabel="first principal component", xticks=[])
        axes.set(ylabel="second principal component", yticks=[])
    handles = next((axes.collections for axes in rows[1].axes if axes.collections), ())
    if handles and names:
        rows[1].legend(
            handles, names, loc="outside lower center", ncols=min(7, len(names)), frameon=False, markerscale=2.5
        )
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that the font lacks: boxes are drawn
        figure.savefig(temporary, dpi=120, format=path.suffix[1:] or "png")


def _drawable(name: str) -> str:
    """A name as matplotlib draws it: what stands between two dollars would be set as TeX, or fail to."""
    return printable(name, 40).replace("$", r"\$")


def inspect(
    path: str | Path,
    plot: str | Path | None = None,
    missing: str = "refuse",
    label_names: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """What a feature file is, with everything that is suspicious about it; a broken one as far as it can be read.

    Args:
        path: The file or folder.
        plot: Where to draw a picture of it, if anywhere.
        missing: ``mask`` where modalities may be missing, as for `read`.
        label_names: The classes, as for `read`.

    Raises:
        InputError: If too little of it can be read to say what it is.
    """
    source, faults = Source(Path(path)), []
    parts = identify(source, missing)
    corpus = checked(source, parts, missing=missing, label_names=label_names, lenient=True, faults=faults)
    sums = download.checksums(Path(path)) if not is_folder(Path(path)) else {"sha256": source.sha256, "git_blob": ""}
    known = (printable(e["name"]) for e in download.known_files() if sums["git_blob"] and download.is_known_as(sums, e))
    report = (
        {"file": printable(str(path), None), "layout": LAYOUTS[parts.layout], "layout_name": parts.layout}
        | describe(corpus)
        | sums
    )
    report |= {"known_as": next(known, ""), "provenance": dict(parts.provenance)}
    report["warnings"] = faults + report["warnings"]
    if plot:
        try:
            draw(corpus, Path(plot))
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{plot}: cannot be drawn ({error!s:.100}); give a writable name such as a.png") from None
    return report
