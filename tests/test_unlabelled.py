"""Utterances without a label: context for others, in no loss and no score; our container alone has a place for them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_content import make_nine

import feature_files
import utils
from dataloader import IGNORE_LABEL, collate, label_counts
from experiment.evaluation import prediction_table
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
