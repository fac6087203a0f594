"""What there is to see of a run, gathered from its directory; what is missing or damaged is said and left out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

import utils
from dataloader import IGNORE_LABEL, MODALITIES, Dialogue, session_of
from experiment import predictions
from experiment.comparison import draws, interval
from experiment.run_directory import read_json
from experiment.settings import Settings, from_json
from files import InputError, check_regular

DRAWS = 1000  # of the bootstrap
POINTS = 300  # utterances on a map: more are a blot
FEW_DIALOGUES, FEW_UTTERANCES = 5, 100  # fewer call for care
TABLE = ("dialogue", "utterance", "speaker", "label", "predicted")


@dataclass(frozen=True)
class Map:
    """Points in the plane and the groups they are of.

    Attributes:
        points: ``[N, 2]``.
        groups: By what (``emotion``, ``modality``) to the number of each point's group ``[N]`` and their names.
        about: Which weights and which layer.
    """

    points: np.ndarray
    groups: Mapping[str, tuple[np.ndarray, tuple[str, ...]]]
    about: str


@dataclass
class Insight:
    """A run, or several of a plan taken together.

    Attributes:
        directory: Where it is.
        config: ``config.json``, or what of it could be read.
        report: ``report.json``.
        label_names: Names of the classes.
        table: The scored utterances: `TABLE`, ``sentence`` and ``session``; empty where there is none.
        probabilities: Of each class ``[N, C]``; of several runs their mean.
        confidence: Of what is predicted ``[N]``.
        histories: Stage to one row an epoch.
        even: Losses of a generator and of a discriminator that cannot tell, in nats.
        maps: ``fused_features`` and ``last_layer`` (of what that reads) to what waits for the map and gives it.
        modalities: Modality to the change of the predicted class's probability without it, ``[N]``.
        neighbours: Those that weigh most, for each utterance.
        members: Name of each of several runs to its report.
        summary: ``summary.json`` of several.
        problems: What is missing or damaged, a line each.
        drawn: Pictures that were written.
    """

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*TABLE, "sentence", "session"]))
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(0))
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    even: tuple[float, float] = (float(np.log(2)), float(np.log(2)))
    maps: dict[str, Callable[[], Map | None]] = field(default_factory=dict)
    fused_features: dict[str, np.ndarray] = field(default_factory=dict)
    modalities: dict[str, np.ndarray] = field(default_factory=dict)
    neighbours: list[list[tuple[int, float]]] = field(default_factory=list)
    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    drawn: list[Path] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, Any]:
        """The figures of the test split, of the predictions themselves where they are there."""
        if len(self.table):
            return utils.score(self.table["label"].to_numpy(), self.probabilities, self.label_names)
        scores = self.report.get("test")
        return scores if isinstance(scores, dict) else {}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings as written, in groups."""
        groups = self.config.get("settings")
        return {g: v for g, v in groups.items() if isinstance(v, dict)} if isinstance(groups, dict) else {}

    def map(self, name: str) -> Map | None:
        """One of the maps; None where there is none, or where making it has failed."""
        return self.maps[name]() if name in self.maps else None

    def attempt(self, what: str, act: Callable[[], Any]) -> Any:
        """What an action returns; None, and a line among the problems, where it fails."""
        try:
            return act()
        except Exception as error:  # a damaged file fails in many ways, and a page is made all the same
            said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            self.problems.append(f"{what}: {' '.join(said.split()):.300}")
            return None


def gather(
    directory: Path,
    *,
    network: Any = None,
    dialogues: Sequence[Dialogue] | None = None,
    maps: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Insight:
    """All there is to see of a run or of a plan's runs.

    Args:
        directory: Of the run.
        network: With the weights that are reported on, if it is at hand; else it is read from the run.
        dialogues: The test split, standardised, if it is at hand; else the data are read from where the run had them.
        maps: Whether to begin the maps, which take seconds; `Insight.map` waits for them.
        config: Of the run, if the directory has only what it says of other data: then there are no curves either.
    """
    seen = Insight(directory)
    own = config is None
    seen.config = dict(config or seen.attempt("config.json", lambda: _dictionary(directory / "config.json")) or {})
    if "flags" in seen.config:
        seen.problems.append("config.json: a run of an older version; its network cannot be read by this one")
    members = several(directory)
    if members:
        _gather_members(seen, members)
        return seen
    seen.report = seen.attempt("report.json", lambda: _dictionary(directory / "report.json")) or {}
    corpus = seen.config.get("corpus")
    names = corpus.get("label_names") if isinstance(corpus, dict) else None
    read = seen.attempt("predictions.csv", lambda: read_predictions(directory / "predictions.csv", names))
    if read:
        seen.table, seen.probabilities, seen.label_names = read
    elif isinstance(seen.report.get("test"), dict) and isinstance(seen.report["test"].get("per_class"), dict):
        seen.label_names = tuple(seen.report["test"]["per_class"])
    _fill(seen)
    for stage, name in (("adversarial", "GAN_loss.csv"), ("classifier", "history.csv")):
        if (directory / name).exists() or (own and stage == "classifier"):
            rows = seen.attempt(name, lambda name=name: read_curves(directory / name))
            if rows:
                seen.histories[stage] = rows
    if own or network is not None:  # else several networks were scored as one
        _look_into_network(seen, network, dialogues, maps)
    return seen


def several(directory: Path) -> list[Path]:
    """The run directories of a plan, such as ``seed0`` or ``seed0/foldSes01``; none of a single run."""
    found = sorted(
        path
        for pattern in ("seed*", "fold*", "seed*/fold*")
        for path in directory.glob(pattern)
        if (path / "predictions.csv").exists() or (path / "report.json").exists()
    )
    return sorted(found, key=lambda path: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", str(path))])


def _dictionary(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError("not what a run writes; the file is damaged")
    return content


def read_predictions(
    path: Path, label_names: Sequence[str] | None = None
) -> tuple[pd.DataFrame, np.ndarray, tuple[str, ...]]:
    """The labelled test utterances of a run, their probabilities and the names of the classes.

    The column ``place`` says which of all utterances of its dialogue each is, from 0.

    Raises:
        InputError: If the file is not there or not what a run writes.
    """
    table = predictions.read_predictions(path.parent).copy()  # in one piece, or of many classes pandas warns
    if missing := [name for name in TABLE if name not in table]:
        raise InputError(f"damaged, or of an older version: no column {', '.join(missing)}")
    columns = [name for name in table if name.startswith("p_")]
    names = [str(name) for name in label_names or []]
    if [f"p_{name}" for name in names] != columns:
        names = predictions.class_names(table)
    table["place"] = table.groupby("dialogue").cumcount()
    table = table[table["label"] != IGNORE_LABEL].reset_index(drop=True)
    if not len(table) or not columns:
        raise InputError("no test utterance in it")
    return table, table[columns].to_numpy(), tuple(names)


def read_curves(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV file of curves; what is no number is left out."""
    check_regular(path)
    try:
        table = pd.read_csv(path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"damaged ({error})") from None
    if "epoch" not in table or not len(table):
        raise InputError("damaged: no epochs in it")
    table = table.apply(pd.to_numeric, errors="coerce").dropna(subset=["epoch"])
    return table.to_dict("records")


def _fill(seen: Insight) -> None:
    """Columns that follow from others, and those that some versions lack."""
    table = seen.table
    if "sentence" not in table:
        table["sentence"] = ""
    table["session"] = [session_of(d) for d in table["dialogue"]]
    if "confidence" in table:
        seen.confidence = pd.to_numeric(table["confidence"], errors="coerce").fillna(0).to_numpy().clip(0, 1)
    else:
        seen.confidence = seen.probabilities.max(1, initial=0)


def _gather_members(seen: Insight, members: Sequence[Path]) -> None:
    """Read the runs of a plan: each utterance once, with the mean of what the runs that scored it say: the ensemble."""
    seen.summary = seen.attempt("summary.json", lambda: _dictionary(seen.directory / "summary.json")) or {}
    frames, names = [], None
    for path in members:
        name = path.relative_to(seen.directory).as_posix()
        report = seen.attempt(f"{name}/report.json", lambda path=path: _dictionary(path / "report.json"))
        if report and isinstance(report.get("test"), dict):
            seen.members[name] = report
        read = seen.attempt(f"{name}/predictions.csv", lambda path=path: read_predictions(path / "predictions.csv"))
        if not read:
            continue
        table, probabilities, found = read
        if names not in (None, found):
            seen.problems.append(f"{name}: other classes than those of the first run; left out")
            continue
        names = found
        frames.append(table.assign(**{f"p_{i}": probabilities[:, i] for i in range(len(found))}))
        seen.label_names = tuple(names)
    if not frames:
        return
    columns = [f"p_{i}" for i in range(len(names))]
    every = pd.concat(frames, ignore_index=True)
    groups = every.groupby(["dialogue", "place"], sort=False)
    first = groups.first().reset_index()
    seen.probabilities = groups[columns].mean().to_numpy()
    seen.table = first.drop(columns=[*columns, "confidence"], errors="ignore")
    seen.table["predicted"] = seen.probabilities.argmax(1)
    order = np.argsort(pd.factorize(seen.table["dialogue"])[0], kind="stable")
    seen.table, seen.probabilities = seen.table.iloc[order].reset_index(drop=True), seen.probabilities[order]
    _fill(seen)
    if not any(seen.table["sentence"]):  # predictions of an older version
        seen.attempt("transcripts", lambda: _add_sentences(seen, load_dialogues(seen)[0]))


def load_dialogues(seen: Insight) -> tuple[list[Dialogue], Settings]:
    """The test dialogues of a run from where its data are, as they are in the file.

    Raises:
        InputError: If the data are not there, or others.
    """
    from experiment.corpus import read_corpus

    settings = from_json(seen.config.get("settings"), str(seen.directory / "config.json"))
    corpus = read_corpus(settings.data)
    then = seen.config.get("features", {}).get("sha256")
    if corpus.sha256 != then:
        raise InputError(f"{corpus.name}: not the data of the run (SHA-256 {corpus.sha256[:12]}…, then {then!s:.12}…)")
    ids = dict.fromkeys(seen.table["dialogue"]) or seen.config.get("splits", {}).get("test", ())
    return [corpus.dialogues[i] for i in ids], settings


def _places(seen: Insight, dialogues: Sequence[Dialogue]) -> np.ndarray:
    """Which of all utterances of these dialogues those of the table are.

    Raises:
        InputError: If one is not among them.
    """
    begins = dict(zip([d.id for d in dialogues], np.cumsum([0, *map(len, dialogues)]), strict=False))
    lengths = {d.id: len(d) for d in dialogues}
    pairs = list(zip(seen.table["dialogue"], seen.table["place"], strict=True))
    if any(place >= lengths.get(i, 0) for i, place in pairs):
        raise InputError("the predictions are not of the dialogues in the data file")
    return np.array([begins[i] + place for i, place in pairs])


def _add_sentences(seen: Insight, dialogues: Sequence[Dialogue]) -> np.ndarray:
    """Write the transcripts into the table. Returns `_places`."""
    every, places = [s for d in dialogues for s in d.sentences], _places(seen, dialogues)
    seen.table["sentence"] = [every[k] for k in places]
    return places


def _look_into_network(seen: Insight, network: Any, dialogues: Sequence[Dialogue] | None, maps: bool) -> None:
    """What only the network itself tells: maps of its features, and what decided."""
    if not len(seen.table):
        return
    if network is None or dialogues is None:
        transcripts = "" if any(seen.table["sentence"]) else ", and transcripts"
        found = seen.attempt(f"what decided and maps{transcripts}", lambda: _read_network(seen))
        if not found:
            return
        network, dialogues = found
    rows, count = seen.attempt("what decided", lambda: _add_sentences(seen, dialogues)), sum(map(len, dialogues))
    if rows is None:
        return
    from experiment.attribution import attribute
    from experiment.fused import extract_fused

    weights = (
        f"checkpoints/best.safetensors (epoch {seen.report.get('best_epoch', 'kept')} of stage 2, weights averaged)"
    )
    seen.even = seen.attempt("even losses", lambda: network.fusion.even_losses) or seen.even
    pool = ThreadPoolExecutor(2, initializer=partial(threadpool_limits, 1))

    def begin_map(name: str, features: Mapping[str, np.ndarray], about: str) -> None:
        """Make a map beside all that follows: it takes seconds, few of them in Python."""
        labels = seen.table["label"].to_numpy()
        draw = partial(fused_map, features, labels, seen.label_names, f"{about} of {weights}.")
        seen.maps[name] = pool.submit(seen.attempt, f"map {name}", draw).result

    if maps and (fused := seen.attempt("fused features", lambda: extract_fused(network.fusion, dialogues))):
        seen.fused_features = {m: f[rows] for m, f in fused.items()}
        begin_map("fused_features", seen.fused_features, "Generators")
    found = seen.attempt("what decided", lambda: attribute(network, dialogues))
    if found and maps:
        begin_map("last_layer", {"": found.last_layer[rows]}, "What the classifier's last linear layer reads,")
    pool.shutdown(wait=False)
    if found:
        seen.modalities = {m: change[rows] for m, change in found.modalities.items()}
        if len(rows) == count:  # else neighbours may have no label, and are not shown
            seen.neighbours = found.neighbours
        else:
            seen.problems.append(f"{count - len(rows)} utterances without a label, and what neighbours decided")


def _read_network(seen: Insight) -> tuple[Any, list[Dialogue]]:
    from experiment.trained import best_weights, build_network, load_standardiser, load_weights

    dialogues, settings = load_dialogues(seen)
    network = build_network(seen.config["corpus"], settings.fusion, settings.classifier)
    load_weights(network, best_weights(seen.directory))
    standardise = load_standardiser(seen.directory)
    return network, [standardise(d) for d in dialogues]


def fused_map(fused: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str], about: str) -> Map:
    """A map (t-SNE) of features, with the emotion and the modality of each point.

    Args:
        fused: Modality to features ``[N, d]``; rows of NaN are not drawn.
        labels: Classes ``[N]``.
        names: Names of the classes.
        about: Which weights and which layer.
    """
    chosen = np.linspace(0, len(labels) - 1, min(POINTS, len(labels))).astype(int)  # evenly spaced
    points = np.concatenate([np.asarray(f, dtype=float)[chosen] for f in fused.values()])
    there = np.isfinite(points).all(1)
    points = points[there]
    emotion = np.tile(labels[chosen], len(fused))[there]
    kinds = MODALITIES if set(fused) <= set(MODALITIES) else tuple(fused)  # so that each has its own colour
    modality = np.repeat([kinds.index(m) for m in fused], len(chosen))[there]
    groups = {"emotion": (emotion, tuple(names)), "modality": (modality, kinds)}
    return Map(plane(points), groups, f"{about} t-SNE of {len(chosen)} of {len(labels)} test utterances.")


def plane(points: np.ndarray) -> np.ndarray:
    """Points in the plane, neighbours beside each other (t-SNE, after PCA to 30 dimensions), ``[N, 2]`` from 0 to 1."""
    if len(points) > 3 and np.ptp(points, axis=0).any():
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        kept = min(30, *points.shape)
        points = PCA(kept, svd_solver="full", random_state=0).fit_transform(points)
        if kept > 1:
            perplexity = min(30, (len(points) - 1) / 3)
            # At a coarser angle (0.5 unless given) it takes three quarters of the time, to 1 % of the divergence.
            tsne = TSNE(init="pca", perplexity=perplexity, max_iter=500, angle=0.8, random_state=0)
            points = tsne.fit_transform(points)
    points = np.nan_to_num(np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))[:, :2].astype(float))
    span = np.ptp(points, axis=0) if len(points) else np.ones(2)
    return (points - points.min(0, initial=np.inf if len(points) else 0)) / np.where(span > 0, span, 1)


# Intervals ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resampled:
    """Scores of resampled dialogues, in percent.

    Attributes:
        weighted_f1: One a draw ``[R]``.
        f1: Of each class ``[R, C]``.
    """

    weighted_f1: np.ndarray
    f1: np.ndarray

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of weighted F1."""
        return interval(self.weighted_f1)


def resample(dialogues: Sequence[str], labels: np.ndarray, predicted: np.ndarray, classes: int) -> Resampled:
    """Scores over `DRAWS` bootstrap draws of the dialogues: what other dialogues of these speakers might have given.

    Args:
        dialogues: The dialogue of each utterance, N ids.
        labels: Classes ``[N]``.
        predicted: Classes ``[N]``.
        classes: How many there are.
    """
    number, ids = pd.factorize(np.asarray(dialogues, dtype=object))
    counts = np.zeros((3, len(ids), classes))
    right = labels == predicted
    np.add.at(counts[0], (number[right], labels[right]), 1)
    np.add.at(counts[1], (number, labels), 1)
    np.add.at(counts[2], (number, predicted), 1)
    weights = draws(ids, DRAWS)
    hits, true, said = (weights @ each for each in counts)
    f1 = 100 * 2 * hits / np.maximum(true + said, 1)
    return Resampled((f1 * true).sum(1) / np.maximum(true.sum(1), 1), f1)


def by_group(seen: Insight, kind: str) -> list[dict[str, Any]]:
    """Scores of each speaker or session: name, utterances, dialogues, weighted F1, its interval or None, few.

    Args:
        seen: The run.
        kind: ``speaker`` or ``session``. Where ids name sessions, a speaker is one of a session.
    """
    table = seen.table
    keys = table["session"]
    if kind == "speaker":
        keys = (table["session"] + " " + table["speaker"].astype(str)).str.strip()
    rows = []
    for name, part in table.groupby(keys, sort=False):
        if kind == "session" and not name:
            continue
        labels, predicted = part["label"].to_numpy(), part["predicted"].to_numpy()
        count = part["dialogue"].nunique()
        scores = resample(part["dialogue"], labels, predicted, len(seen.label_names)) if count > 1 else None
        f1 = utils.weighted_f1(labels, np.eye(len(seen.label_names))[predicted])
        few = count < FEW_DIALOGUES or len(part) < FEW_UTTERANCES
        interval = scores.interval() if scores else None
        rows.append(
            {"name": name, "utterances": len(part), "dialogues": count, "f1": f1, "interval": interval, "few": few}
        )
    return rows


def over_folds(figures: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """A row a run, by name; of seeds of folds a row a seed, the means over its folds: its folds are no more seeds."""
    return figures.groupby(lambda name: name.partition("/")[0], sort=False).mean()


def changed_settings(seen: Insight) -> dict[str, Any]:
    """The settings that differ from the defaults, by flag."""
    from experiment.settings import groups

    changed = {}
    for group, cls in groups().items():
        for f in dataclasses.fields(cls):
            value = seen.settings.get(group, {}).get(f.name, f.default)
            value = tuple(value) if isinstance(value, list) else value
            if value != f.default and f"{group}.{f.name}" not in ("run.device", "data.fold"):
                changed[f.metadata["flag"] or f"{group}.{f.name}"] = value
    return changed
