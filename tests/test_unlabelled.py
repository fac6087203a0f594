"""Utterances without a label: context for others, in no loss and no score; our container alone has a place for them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_content import make_nine
from small import SHORT, ran, small_corpus, train

import feature_files
import train_IEMOCAP
import utils
from dataloader import IEMOCAP_LABELS, IGNORE_LABEL, collate, cross_validation, hold_out_validation, label_counts
from experiment.evaluation import prediction_table
from feature_files.unlabelled import read_unlabelled
from files import InputError
from model import emotion_loss
from synthetic import synthetic_corpus


@pytest.fixture
def corpus():
    """A corpus whose every third utterance has no label."""
    made = synthetic_corpus(train=3, test=2, mean_length=9, dims={"text": 5, "acoustic": 4})

    def hide(d):
        labels = d.labels.copy()
        labels[::3] = IGNORE_LABEL
        return replace(d, labels=labels)

    return replace(made, dialogues={i: hide(d) for i, d in made.dialogues.items()})


def test_they_survive_the_container_and_are_counted(corpus, tmp_path):
    feature_files.write_container(corpus, tmp_path / "a.safetensors")
    again = feature_files.read(tmp_path / "a.safetensors")
    for i, d in corpus.dialogues.items():
        assert (again.dialogues[i].labels == d.labels).all()
    report = feature_files.inspect(tmp_path / "a.safetensors")
    hidden = sum((d.labels == IGNORE_LABEL).sum() for d in corpus.dialogues.values())
    assert report["unlabelled"] == hidden > 0
    assert sum(map(sum, report["class_counts"].values())) == sum(map(len, corpus.dialogues.values())) - hidden


def test_a_split_needs_a_label_and_other_negative_labels_are_refused(corpus, tmp_path, save):
    def labelled(d, value):
        return replace(d, labels=np.full(len(d), value))

    none = replace(corpus, dialogues={i: labelled(d, IGNORE_LABEL) for i, d in corpus.dialogues.items()})
    feature_files.write_container(none, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="train: no utterance with a label; label some of the dialogues to train on"):
        feature_files.read(tmp_path / "a.safetensors")
    assert len(feature_files.read(tmp_path / "a.safetensors", needs=()).dialogues) == 5
    wrong = replace(corpus, dialogues={i: labelled(d, -5) for i, d in corpus.dialogues.items()})
    feature_files.write_container(wrong, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="label -5 is no whole number from 0 up"):
        feature_files.read(tmp_path / "b.safetensors")
    nine = make_nine()
    next(iter(nine[2].values()))[0] = IGNORE_LABEL
    with pytest.raises(InputError, match="label -100 is no whole number from 0 up"):
        feature_files.read(save(tuple(nine)))


def test_they_are_in_no_loss_no_count_and_no_score(corpus):
    dialogues = list(corpus.dialogues.values())
    batch = collate(dialogues)
    assert (batch.labelled == (batch.mask & (batch.labels >= 0))).all() and batch.labelled.sum() < batch.mask.sum()
    labels = np.concatenate([d.labels for d in dialogues])
    assert label_counts(dialogues, 6).tolist() == np.bincount(labels[labels >= 0], minlength=6).tolist()
    probabilities = np.random.default_rng(0).dirichlet(np.ones(6), len(labels))
    known = labels >= 0
    assert utils.score(labels, probabilities, range(6)) == utils.score(labels[known], probabilities[known], range(6))
    table = prediction_table({"train": dialogues}, {"train": probabilities}, [str(k) for k in range(6)])
    assert (table["label"].isna() == ~known).all() and (table["label"].dropna() == labels[known]).all()
    nothing = emotion_loss(torch.ones(0, 6, requires_grad=True), torch.zeros(0, dtype=torch.long))
    nothing.backward()
    assert nothing == 0


# Training on parts of a corpus without labels -------------------------------------------------------------------------


def without(corpus, ids, but=0):
    """The corpus with no label in these dialogues but those of the first utterances."""

    def hide(d):
        return replace(d, labels=np.where(np.arange(len(d)) < but, d.labels, IGNORE_LABEL))

    return replace(corpus, dialogues={i: hide(d) if i in ids else d for i, d in corpus.dialogues.items()})


def container(corpus, path):
    feature_files.write_container(corpus, path)
    return path


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--valid", "0.25"], lambda c: hold_out_validation(c, 0.25, 0)),
        (["--folds", "2", "--folds-over", "train"], lambda c: cross_validation(c, 2, "train")["1of2"]),
        (["--calibrate", "2"], lambda c: cross_validation(c, 2, "train")["2of2"]),
    ],
)
def test_a_part_without_a_label_is_refused_before_anything_is_written(tmp_path, capsys, flags, parts):
    whole = small_corpus()
    made = parts(whole).splits
    path = container(without(whole, made.get("valid") or made["test"]), tmp_path / "x.safetensors")
    status, _, error = ran(train_IEMOCAP.main, ["--features", path, *SHORT, *flags, "--out", tmp_path / "run"], capsys)
    assert status == 2 and error.count("\n") == 1 and "has a label; label some, or divide" in error
    assert not (tmp_path / "run").exists()


def test_a_training_dialogue_that_is_too_few_for_validation_within_a_fold_is_found_before_training(tmp_path, capsys):
    path = container(small_corpus(train=4), tmp_path / "four.safetensors")
    flags = ["--valid", "0.2", "--calibrate", "2", "--out", tmp_path / "run"]
    status, _, error = ran(train_IEMOCAP.main, ["--features", path, *SHORT, *flags], capsys)
    assert status == 2 and error.count("\n") == 1 and "too few to set 20% of them aside" in error
    assert not (tmp_path / "run").exists()


def test_epochs_that_see_no_label_and_a_validation_split_without_one_do_no_harm(tmp_path):
    whole = small_corpus()
    train_ids = whole.splits["train"]
    few = without(without(whole, train_ids[1:]), train_ids[:1], but=1)
    run = train(tmp_path / "run", "--features", container(few, tmp_path / "few.safetensors"), *SHORT, "--epochs", "8")
    assert (run / "report.json").exists()
    splits = {"train": train_ids[2:], "valid": train_ids[:2], "test": whole.splits["test"]}
    own = container(without(replace(whole, splits=splits), train_ids[:2]), tmp_path / "own.safetensors")
    out = train(tmp_path / "again", "--evaluate", run, "--features", own, "--no-pictures")
    assert json.loads((out / "report.json").read_text())["valid"] is None


def test_the_nine_tuple_has_no_place_for_them(corpus, tmp_path, capsys):
    path = container(corpus, tmp_path / "a.safetensors")
    assert feature_files.main(["convert", str(path), str(tmp_path / "a.pkl")]) == 2
    argv = ["--features", path, *SHORT, "--out", tmp_path / "run", "--export-fused", tmp_path / "fused.pkl"]
    assert ran(train_IEMOCAP.main, argv, capsys)[0] == 2
    assert not {"a.pkl", "fused.pkl", "run"} & {p.name for p in tmp_path.iterdir()}


# Files for predict.py -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["no train", "no splits", "labels None", "some None", "no labels"])
def test_a_file_to_predict_on_is_converted_and_joined(save, tmp_path, how):
    nine = make_nine()
    nine[7] = []
    if how != "no train":
        nine[8] = []
    if how == "labels None":
        nine[2] = {i: [None] * len(row) for i, row in nine[2].items()}
    elif how == "some None":
        next(iter(nine[2].values()))[0] = None
    elif how == "no labels":
        nine[2] = {}
    flags, kept = (["--keep-unlabelled"] if "labels" in how or "None" in how else []), save(tuple(nine), "a.pkl")
    for command in (["convert", kept], ["join", kept, kept]):
        out = tmp_path / f"{command[0]}.safetensors"
        assert feature_files.main([*map(str, command), str(out), *flags]) == 0
        one, two = (read_unlabelled(path, IEMOCAP_LABELS) for path in (kept, out))
        assert one[1] is two[1] is None and one[0].splits == two[0].splits and one[0].dialogues.keys() == nine[3].keys()
        for i, d in one[0].dialogues.items():
            same = two[0].dialogues[i]
            assert d.labels.tolist() == same.labels.tolist()
            assert all(np.array_equal(x, same.features[m]) for m, x in d.features.items())
    with pytest.raises(InputError, match="train: no dialogues; list the dialogues to train on"):
        feature_files.read(out)


def test_a_label_that_is_none_is_a_fault_unless_told_otherwise(save, tmp_path, capsys):
    nine = make_nine(classes=2)
    next(iter(nine[2].values()))[0] = None
    command = ["convert", str(save(tuple(nine))), str(tmp_path / "a.safetensors"), "--label-names", "calm,cross"]
    assert feature_files.main(command) == 2 and "is no whole number" in capsys.readouterr().err
    assert feature_files.main([*command, "--keep-unlabelled"]) == 0
    again = feature_files.read(tmp_path / "a.safetensors")
    assert again.label_names == ("calm", "cross") and next(iter(again.dialogues.values())).labels[0] == IGNORE_LABEL


def test_a_label_that_can_be_none_is_named_as_the_file_has_it(save, tmp_path, capsys):
    nine = make_nine()
    next(iter(nine[2].values()))[:2] = [None, "sad"]
    command = ["convert", str(save(tuple(nine))), str(tmp_path / "a.safetensors"), "--keep-unlabelled"]
    assert feature_files.main(command) == 2 and "label 'sad' is no whole number" in capsys.readouterr().err
