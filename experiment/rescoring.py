"""A finished run, or several as one, scored again."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from dataloader import Corpus, any_label
from experiment.checks import check_shape
from experiment.evaluation import assess
from experiment.flags import Command
from experiment.look import leave_a_look
from experiment.prediction import Model, assess_model, load
from experiment.run_directory import locked, prepare_directory, read_config, splits_of, unfinished_notes, write_json
from experiment.settings import Settings
from files import InputError, complain


def rescore(command: Command, settings: Settings, corpus: Corpus) -> str:
    """Score the run that ``--evaluate`` names and, where ``--out`` names a directory, write the report there.

    Args:
        command: What was asked for.
        settings: Of the run, with what was asked for in its place.
        corpus: The run's own, or another of the same shape; its test split is scored.

    Returns:
        The report.

    Raises:
        InputError: If the network cannot read the corpus, or the directory cannot be had.
    """
    directory = Path(command.evaluate)
    config = read_config(directory)
    model = load(directory, settings.run.device)
    check_shape(corpus, config["corpus"], directory)
    for note in unfinished_notes(model.unfinished, "weights"):
        complain(f"note: {note}")
    several = len(model.members) > 1
    if command.export_fused and several:
        one = directory / model.members[0].name
        raise InputError(f"--export-fused writes the features of one run: use --evaluate {one}")
    scored = corpus
    if corpus.sha256 == config["features"]["sha256"] and not several:  # else no dialogue was held out of it
        scored = replace(corpus, splits=splits_of(config, corpus, directory))
    else:
        warn_of_known(model, scored)
    data = {split: scored.split(split) for split in scored.splits if any_label(scored.split(split))}
    out = Path(command.out) if command.out else None
    with locked(out) if out else nullcontext():
        if out:
            prepare_directory(out, corpus, resume=False, overwrite=command.overwrite)
        if several:
            scores, text = assess_model(model, data, out)
        else:
            one = model.members[0]
            standardised = {split: [one.standardise(d) for d in dialogues] for split, dialogues in data.items()}
            scores, text = assess(one.network, standardised, corpus.label_names, out, one.calibration)
        if out:
            write_json(out / "report.json", scores)
            seen = {} if several else {"network": one.network, "dialogues": standardised["test"]}
            about = {**config, "features": {"file": corpus.name, "sha256": corpus.sha256}}
            leave_a_look(out, replace(command.settings.run, tensorboard=False), **seen, config=about)
    return text


def warn_of_known(model: Model, corpus: Corpus) -> None:
    """Say so where test dialogues have the names of those that a model has learnt from: the corpus may be its own."""
    runs = [model.directory] if len(model.members) == 1 else [model.directory / m.name for m in model.members]
    known = {i for run in runs for i in read_config(run)["splits"].get("train", ())}
    if same := [i for i in corpus.splits["test"] if i in known]:
        complain(
            f"warning: {corpus.name}: {len(same)} test dialogues, such as {same[0]!r:.80}, have names of dialogues "
            f"that {model.directory} was trained on; if they are the same, these scores are too good"
        )
