"""A finished run as a thing to use: loaded from its directory, it answers on conversations nobody has labelled.

    model = load("runs/first")
    table = model.predict("new.pkl")

What is needed of a run is ``config.json`` and, in ``checkpoints/``, ``best.safetensors`` and
``standardiser.safetensors``: JSON and safetensors, from which no code is run. Shapes use n utterances of a dialogue, N
of all, C classes and d features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import feature_files
import utils
from dataloader import IGNORE_LABEL, MODALITIES, Corpus, Dialogue, Standardiser, batches
from experiment import calibration
from experiment.calibration import Calibration
from experiment.checks import check_memory
from experiment.evaluation import BATCH_SIZE, assess_predictions, check_answers, evaluate, utterance_table
from experiment.fused import extract_fused
from experiment.run_directory import FINISH, read_config, states, unfinished_notes
from experiment.settings import Settings, check_seeds, from_json
from experiment.trained import best_weights, build_network, load_standardiser, load_weights, standardiser_file
from feature_files.container import other_encoder
from feature_files.unlabelled import read_unlabelled
from files import InputError, printable
from model import GANFFN

Dialogues = str | Path | Corpus | Sequence[Dialogue] | Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Member:
    """One trained network, and what its run fitted beside it.

    Attributes:
        name: Of its run.
        network: In evaluation mode.
        standardise: By the statistics of its training dialogues.
        calibration: Its temperature, where its run had dialogues to fit one on.
    """

    name: str
    network: GANFFN
    standardise: Standardiser
    calibration: Calibration | None

    def probabilities(self, dialogues: Sequence[Dialogue], calibrated: bool = True) -> np.ndarray:
        """Of each class, ``[N, C]``, the utterances in the order of the dialogues."""
        own = evaluate(self.network, [self.standardise(d) for d in dialogues])[1]
        return self.calibration(own) if calibrated and self.calibration else own


@dataclass(frozen=True)
class Reading:
    """Dialogues that fit a model.

    Attributes:
        dialogues: With the model's modalities; a label is `IGNORE_LABEL` where there is none.
        splits: Split to dialogue ids, where the file has any.
        notes: What there is to know about them, a line each.
    """

    dialogues: list[Dialogue]
    splits: Mapping[str, Sequence[str]]
    notes: list[str]


@dataclass(frozen=True)
class Embedding:
    """What a network makes of utterances on the way to its answer.

    Attributes:
        utterances: A row each: ``dialogue``, ``utterance``, ``turn``, ``speaker``.
        fused: Modality to fused features ``[N, d]``; rows of NaN where the modality is missing.
        last_layer: What the classifier's last linear map reads, ``[N, d]``.
    """

    utterances: pd.DataFrame
    fused: dict[str, np.ndarray]
    last_layer: np.ndarray


@dataclass(frozen=True)
class Model:
    """A run, or the runs of several seeds whose probabilities are averaged.

    Nothing in it changes when it is used, so that threads may share it.

    Attributes:
        directory: Of the run.
        settings: It was trained with.
        label_names: C names.
        dims: Modality to width.
        num_speakers: How many are told apart: the most that a dialogue of its data had, `MOST_SPEAKERS` at most.
        provenance: Where its feature file said that it came from.
        members: The networks; of a single run, one.
        device: Where they compute.
    """

    directory: Path
    settings: Settings
    label_names: tuple[str, ...]
    dims: Mapping[str, int]
    num_speakers: int
    provenance: Mapping[str, Any]
    members: tuple[Member, ...]
    device: str

    @property
    def calibrated(self) -> bool:
        """Whether probabilities were fitted to labels of dialogues that no network had learnt from."""
        return all(member.calibration for member in self.members)

    @property
    def unfinished(self) -> list[Path]:
        """Its runs that have not come to their end: they have the weights so far, and maybe no temperature yet."""
        several = len(self.members) > 1
        runs = [self.directory / member.name if several else self.directory for member in self.members]
        return [run for run in runs if states(run)]

    def predict(self, dialogues: Dialogues, missing: str = "refuse") -> pd.DataFrame:
        """What the model says of every utterance.

        Args:
            dialogues: A feature file's path, a `Corpus`, `Dialogue` objects, or plain arrays: a mapping of modality
                to ``[n, d]`` for one dialogue (``speakers`` and ``sentences``, n texts each, may be in it too), or a
                list of such mappings.
            missing: ``refuse`` dialogues that lack a modality of the model's, or ``mask`` it where it is missing.

        Returns:
            One row an utterance: ``dialogue``, ``utterance``, ``turn``, ``speaker``, ``sentence``, ``predicted``
            (number), ``emotion`` (name), ``confidence`` and ``p_NAME`` for each class; where there are labels also
            ``label``, ``label_name`` and ``correct``. Its ``attrs`` hold ``calibrated`` and ``notes``.

        Raises:
            InputError: If the dialogues do not fit the model; it says what to do.
        """
        reading = self.read(dialogues, missing)
        table = utterance_table(reading.dialogues, self.probabilities(reading.dialogues), self.label_names)
        table.attrs = {"calibrated": self.calibrated, "notes": reading.notes}
        return table

    def probabilities(self, dialogues: Sequence[Dialogue], calibrated: bool = True) -> np.ndarray:
        """Of each class, ``[N, C]``, the mean over the members, the utterances in the order of the dialogues.

        Args:
            dialogues: As `read` gave them.
            calibrated: Whether temperatures are used, where there are any.

        Raises:
            InputError: If features are so far from those of training that numbers overflow.
        """
        each = np.mean([member.probabilities(dialogues, calibrated) for member in self.members], 0)
        check_answers(each, dialogues)
        return each

    def embed(self, dialogues: Dialogues, missing: str = "refuse") -> Embedding:
        """Fused features and the classifier's last layer, for other work.

        Args:
            dialogues: As `predict` takes them.
            missing: As `predict` takes it.

        Raises:
            InputError: If the dialogues do not fit the model, or this is a model of several networks.
        """
        if len(self.members) > 1:
            raise InputError(
                f"{self.directory}: {len(self.members)} networks, whose features are not the same; load one of them, "
                f"such as {self.directory / self.members[0].name}"
            )
        member = self.members[0]
        reading = self.read(dialogues, missing)
        standardised = [member.standardise(d) for d in reading.dialogues]
        with torch.no_grad():
            last = [
                member.network.last_layer(batch.to(self.device)).cpu() for batch in batches(standardised, BATCH_SIZE)
            ]
        rows = utterance_table(reading.dialogues, None, self.label_names)
        return Embedding(rows, extract_fused(member.network.fusion, standardised), torch.cat(last).numpy())

    def read(self, dialogues: Dialogues, missing: str = "refuse", split: str | None = None) -> Reading:
        """Dialogues in whatever form, checked against the model.

        Args:
            dialogues: As `predict` takes them.
            missing: As `predict` takes it.
            split: Of a file or corpus, the one split to take; without, all dialogues.

        Raises:
            InputError: If they do not fit.
        """
        if missing not in ("refuse", "mask"):
            raise InputError(f"--missing: {missing!r:.20} is neither refuse nor mask; choose one")
        notes = unfinished_notes(self.unfinished, "weights")
        if isinstance(dialogues, str | Path):
            corpus, problem = read_unlabelled(
                dialogues,
                self.label_names,
                text_layers=self.settings.data.text_layers,
                target=self.settings.data.target,
                missing=missing,
                trust_names=self.settings.data.label_names is not None,
            )
            if problem:
                notes.append(printable(f"{corpus.name}: its labels are left out: {problem}", None))
            self._check_encoders(dialogues)
        elif isinstance(dialogues, Corpus):
            corpus = dialogues
            if corpus.label_names != self.label_names:
                notes.append(printable(f"{corpus.name}: its labels are left out: other classes than the run's", None))
                none = {i: replace(d, labels=np.full(len(d), IGNORE_LABEL)) for i, d in corpus.dialogues.items()}
                corpus = replace(corpus, dialogues=none)
        else:
            corpus = Corpus("dialogues", {d.id: d for d in _dialogues(dialogues)}, {}, self.label_names)
            for d in corpus.dialogues.values():
                wrong = d.labels[(d.labels < 0) & (d.labels != IGNORE_LABEL) | (d.labels >= len(self.label_names))]
                if len(wrong):
                    raise InputError(
                        f"dialogues: labels: {d.id!r:.80}: a label {wrong[0]}, and the run's classes are 0 to "
                        f"{len(self.label_names) - 1}; give {IGNORE_LABEL} where there is none"
                    )
        chosen = list(corpus.dialogues.values())
        if split is not None:
            if not corpus.splits.get(split):
                there = ", ".join(name for name, ids in corpus.splits.items() if ids) or "none"
                raise InputError(f"{corpus.name}: --split {split}: no such split; there are: {there}")
            chosen = corpus.split(split)
        if not chosen:
            raise InputError(f"{corpus.name}: no dialogues; give one at least")
        chosen = self._with_modalities(corpus.name, chosen, missing, notes)
        most = max(chosen, key=lambda d: len(set(d.speakers)))
        if (count := len(set(most.speakers))) > self.num_speakers:
            notes.append(
                printable(
                    f"{corpus.name}: speakers: dialogue {most.id!r:.80}: {count}, and the run tells "
                    f"{self.num_speakers} apart; the graph takes all further ones for one; train on data with as many",
                    None,
                )
            )
        return Reading(chosen, corpus.splits, notes)

    def _with_modalities(
        self, name: str, dialogues: Sequence[Dialogue], missing: str, notes: list[str]
    ) -> list[Dialogue]:
        """The dialogues with the model's modalities and no other, rows of NaN where one is missing."""
        there = {m for d in dialogues for m in d.features}
        if not there & self.dims.keys():
            raise InputError(
                f"{name}: features: no modality that the run {self.directory} was trained on "
                f"({', '.join(self.dims)}); give a file that has one"
            )
        for m in self.dims:
            if m not in there and missing == "refuse":
                raise InputError(
                    f"{name}: {m}: no features, which the run {self.directory} was trained on; give a file that has "
                    "them, or do without by --missing mask"
                )
        read = []
        for d in dialogues:
            features = {}
            for m, width in self.dims.items():
                x = d.features.get(m)
                if x is None:
                    x = np.full((len(d), width), np.nan, np.float32)
                if x.shape != (len(d), width):
                    raise InputError(
                        f"{name}: {m}: dialogue {d.id!r:.80}: features {list(x.shape)}, but the run {self.directory} "
                        f"was trained on a width of {width}; give {len(d)} rows made by the run's own encoder"
                    )
                lost = np.isnan(x).all(1)
                if not np.isfinite(x[~lost]).all() or (lost.any() and missing == "refuse"):
                    cure = "or add --missing mask" if np.isfinite(x[~lost]).all() else "or leave the dialogue out"
                    raise InputError(f"{name}: {m}: dialogue {d.id!r:.80}: NaN or infinite values; repair them, {cure}")
                features[m] = x
            read.append(replace(d, features=features))
        for m in self.dims:
            if count := sum(int(np.isnan(d.features[m]).all(1).sum()) for d in read):
                total = sum(map(len, read))
                notes.append(f"{printable(name, None)}: {count} of {total} utterances lack {m}, and are read without")
        return read

    def _check_encoders(self, path: str | Path) -> None:
        """Refuse features of other encoders, where both files say which theirs were."""
        before = self.provenance.get("encoders")
        now = feature_files.provenance(path).get("encoders") if before else None
        if not isinstance(before, Mapping) or not isinstance(now, Mapping):
            return
        for m in self.dims:
            one, other = before.get(m), now.get(m)
            if isinstance(one, Mapping) and isinstance(other, Mapping) and (key := other_encoder(one, other)):
                raise InputError(
                    printable(
                        f"{path}: {m}: its encoder's {key} is {other.get(key)!r:.80}, but {one.get(key)!r:.80} "
                        f"where the run {self.directory} was trained; make the features by the run's encoder",
                        None,
                    )
                )


def load(directory: str | Path, device: str = "auto") -> Model:
    """A finished run, or the runs of several seeds as one.

    Args:
        directory: Of the run, wherever it is now; of a ``--seeds`` run, that which has ``seed0`` and the others in it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        InputError: If it is not the directory of a run, or the run is damaged or not so far.
    """
    directory, device = Path(directory), utils.choose_device(device)
    config = read_config(directory)
    plan = config.get("plan")
    if not plan:
        return _load_one(directory, config, device)
    if not isinstance(plan, Mapping) or plan.get("folds") or not isinstance(plan.get("seeds"), list):
        one = min((path.parent for path in directory.glob("**/config.json") if path.parent != directory), default=None)
        raise InputError(
            f"{directory}: holds a run for each of several folds, which saw each other's test dialogues; name one"
            + (f", such as {one}" if one else "")
        )
    try:
        seeds = check_seeds(plan["seeds"])
    except ValueError as error:
        raise InputError(f"{directory / 'config.json'}: plan: seeds: {error}; the run directory is damaged") from None
    models = []
    for seed in seeds:
        one = directory / f"seed{seed}"
        if not (one / "config.json").exists():
            raise InputError(f"{one}: no run of seed {seed!s:.20} yet; {FINISH} {directory}")
        models.append(_load_one(one, read_config(one), device))
    if any((m.dims, m.label_names) != (models[0].dims, models[0].label_names) for m in models):
        raise InputError(f"{directory}: its runs have other features or classes than each other; name one of them")
    members = tuple(member for model in models for member in model.members)
    return replace(models[0], directory=directory, members=members)


def assess_model(
    model: Model, data: Mapping[str, Sequence[Dialogue]], directory: Path | None
) -> tuple[dict[str, Any], str]:
    """Score the mean of several networks and, where a directory is given, write the report and predictions there.

    Args:
        model: Of several runs.
        data: Split to dialogues, not standardised.
        directory: Where files go.

    Returns:
        As `assess_predictions`.
    """
    predictions = {
        split: (np.concatenate([d.labels for d in dialogues]), model.probabilities(dialogues, calibrated=False))
        for split, dialogues in data.items()
    }
    calibrated = (
        {split: model.probabilities(dialogues) for split, dialogues in data.items()} if model.calibrated else None
    )
    heading = f"The mean of {len(model.members)} networks' probabilities.\n"
    # Temperatures of several networks can change what their mean says, so that is what is scored.
    said = {split: (labels, (calibrated or {}).get(split, p)) for split, (labels, p) in predictions.items()}
    scores, text = assess_predictions(said, None, data, model.label_names, directory, heading=heading)
    after = calibrated["test"] if calibrated else None
    return scores | {"calibration": calibration.figures(*predictions["test"], after, None)}, text


def _load_one(directory: Path, config: Mapping[str, Any], device: str) -> Model:
    """The model of one run."""
    where = directory / "config.json"
    settings = from_json(config["settings"], str(where))
    dims = config["corpus"]["dims"]
    shape = {**config["corpus"], "dims": {m: dims[m] for m in MODALITIES if m in dims}}
    try:
        with torch.device("meta"):  # the weights take the place of what would be drawn
            network = build_network(shape, settings.fusion, settings.classifier)
    except (RuntimeError, OverflowError, ValueError) as error:
        raise InputError(f"{where}: no network can be made of it ({error!s:.80}); the run is damaged") from None
    check_memory(settings, shape, training=False)
    load_weights(network, best_weights(directory), assign=True)
    standardise = load_standardiser(directory)
    widths = {m: (len(standardise.mean[m]), len(standardise.scale.get(m, ()))) for m in standardise.mean}
    sound = all(np.isfinite(x).all() for x in [*standardise.mean.values(), *standardise.scale.values()])
    if widths != {m: (d, d) for m, d in shape["dims"].items()} or not sound:
        raise InputError(f"{standardiser_file(directory)}: not of this run's features; the run directory is damaged")
    kept = calibration.of_run(config, where)
    member = Member(directory.name, network.to(device).eval(), standardise, kept)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    provenance = config["features"].get("provenance") if isinstance(config["features"], Mapping) else None
    return Model(
        directory,
        settings,
        tuple(shape["label_names"]),
        shape["dims"],
        shape["num_speakers"],
        provenance if isinstance(provenance, Mapping) else {},
        (member,),
        device,
    )


def _dialogues(given: Any) -> list[Dialogue]:
    """Dialogues of `Dialogue` objects or of plain arrays."""
    if isinstance(given, Dialogue | Mapping):
        given = [given]
    if not isinstance(given, Iterable):
        raise InputError(f"dialogues: a {type(given).__name__}; give a path, Dialogue objects or arrays by modality")
    read = [d if isinstance(d, Dialogue) else _of_arrays(d, f"dialogue {k}") for k, d in enumerate(given)]
    if len({d.id for d in read}) != len(read):
        raise InputError("dialogues: two of one id; give each its own")
    return read


def _of_arrays(given: Any, name: str) -> Dialogue:
    """A dialogue of plain arrays by modality."""
    if not isinstance(given, Mapping):
        raise InputError(f"{name}: a {type(given).__name__} where arrays by modality belong, such as {{'text': x}}")
    unknown = given.keys() - {*MODALITIES, "speakers", "sentences", "id"}
    if unknown:
        raise InputError(f"{name}: {min(map(str, unknown))!r:.40}: no modality; there are {', '.join(MODALITIES)}")
    features = {}
    for m in MODALITIES:
        if given.get(m) is not None:
            try:
                features[m] = np.asarray(given[m], np.float32)
            except (TypeError, ValueError):
                raise InputError(f"{name}: {m}: no numbers; give an array of a row an utterance") from None
            if features[m].ndim != 2 or not len(features[m]):
                raise InputError(f"{name}: {m}: shape {list(features[m].shape)}; give a row for each utterance")
    lengths = {len(x) for x in features.values()}
    if len(lengths) != 1:
        raise InputError(f"{name}: features of {sorted(lengths)} utterances; give every modality as many rows")
    n = lengths.pop()
    texts = {}
    for field, default in (("speakers", "speaker"), ("sentences", "")):
        each = (default,) * n if given.get(field) is None else given[field]
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise InputError(f"{name}: {field}: a {type(each).__name__}; give a list of {n} texts")
        texts[field] = tuple(map(str, each))
        if len(texts[field]) != n:
            raise InputError(f"{name}: {field}: {len(texts[field])} for {n} utterances; give one each")
    i = str(given.get("id", name))
    labels = np.full(n, IGNORE_LABEL)
    return Dialogue(i, features, labels, texts["speakers"], texts["sentences"], tuple(f"{i}_{k}" for k in range(n)))
