"""Other networks under the method's protocol: they learn, keep to their dialogue, and pay no heed to padding."""

import baselines
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from small import small_corpus, write

import train_IEMOCAP
from dataloader import IGNORE_LABEL, Batch, collate
from experiment.settings import Settings

SETTINGS = Settings().replace(classifier__epochs=8, run__device="cpu", run__batch_size=4, fusion__dropout=0.1)


@pytest.fixture(scope="module")
def corpus():
    made = small_corpus(train=12, test=4)
    for d in made.dialogues.values():
        d.features["text"][np.arange(len(d)), d.labels] += 5  # an easy one, so that few steps will do
    return made


@pytest.fixture(scope="module")
def dialogues(corpus):
    return sorted(corpus.dialogues.values(), key=len)


def build(name, corpus):
    torch.manual_seed(0)
    return baselines.build(name, corpus, 0.4).eval()


@pytest.mark.parametrize("name", baselines.RATES)
def test_a_network_learns(name, corpus):
    result = baselines.score(name, corpus, SETTINGS, 0, 0.1 if name == "logistic" else 1e-2)
    labels = np.concatenate([d.labels for d in corpus.split("test")])
    assert (result.labels == labels).all() and result.probabilities.shape == (len(labels), corpus.num_classes)
    assert np.allclose(result.probabilities.sum(1), 1)
    predicted = result.probabilities.argmax(1)
    assert result.weighted_f1 == pytest.approx(100 * f1_score(labels, predicted, average="weighted"))
    majority = np.full_like(labels, np.bincount(labels).argmax())
    assert result.weighted_f1 > 100 * f1_score(labels, majority, average="weighted") + 20


@pytest.mark.parametrize("name", baselines.NETWORKS)
@torch.no_grad()
def test_a_network_sees_its_dialogue_and_no_other_and_no_padding(name, corpus, dialogues):
    network, short, long = build(name, corpus), dialogues[0], dialogues[-1]
    alone, beside = network(collate([short])), network(collate([short, long]))
    assert torch.allclose(alone[0], beside[0, : len(short)], atol=1e-5)
    assert (beside[0, len(short) :] == 0).all()
    batch = collate([long])
    for features in batch.features.values():
        features[0, 0] += 1
    assert not torch.allclose(network(batch)[0, 1], beside[1, 1], atol=1e-5)


@pytest.mark.parametrize("name", baselines.NETWORKS)
@torch.no_grad()
def test_an_utterance_left_out_is_as_if_it_had_not_been_said(name, corpus, dialogues):
    network, batch = build(name, corpus), collate([dialogues[-1]])
    if name == "dialoguegcn":
        network.classifier.window = (1000, 1000)  # the places of the others say how near they are
    batch.mask[0, 2] = False
    kept = batch.mask[0]
    features = {m: x[:, kept] for m, x in batch.features.items()}
    without = Batch(batch.ids, features, batch.mask[:, kept], batch.speakers[:, kept], batch.labels[:, kept])
    assert torch.allclose(network(batch)[batch.mask], network(without)[0], atol=1e-5)


def test_what_trains_a_network_is_the_method_s_own_stage_2(corpus, monkeypatch):
    seen = {}

    def spy(network, data, run, settings, *rest):
        seen.update(lr=settings.classifier.lr, seed=settings.run.seed, noise=settings.augmentation.noise)
        train_IEMOCAP.train_classifier(network, data, run, settings, *rest)

    monkeypatch.setattr(baselines, "train_classifier", spy)
    baselines.score("gru", corpus, SETTINGS.replace(classifier__epochs=1), 3, 2e-3)
    assert seen == {"lr": 2e-3, "seed": 3, "noise": Settings().augmentation.noise}


def test_the_same_seed_gives_the_same_bits(corpus):
    once, again = (baselines.score("gru", corpus, SETTINGS.replace(classifier__epochs=2), 1, 1e-2) for _ in range(2))
    assert (once.probabilities == again.probabilities).all()


def test_utterances_without_a_label_or_a_modality_are_read_and_not_scored():
    some = small_corpus()
    for i, d in enumerate(some.dialogues.values()):
        d.features["visual"][i % 3 :: 3] = np.nan
        d.labels[1] = IGNORE_LABEL
    for name in ("lstm", "logistic"):
        result = baselines.score(name, some, SETTINGS.replace(classifier__epochs=1), 0, 1e-2)
        known = result.labels != IGNORE_LABEL
        assert np.isfinite(result.probabilities).all() and 0 < known.sum() < len(known)
        predicted = result.probabilities.argmax(1)[known]
        assert result.weighted_f1 == pytest.approx(100 * f1_score(result.labels[known], predicted, average="weighted"))


def test_the_rate_is_chosen_within_the_training_dialogues(corpus, monkeypatch):
    test = set(corpus.splits["test"])

    def score(name, part, settings, seed, lr):
        assert not test & set(part.splits["train"] + part.splits["test"])
        return baselines.Score(50 - abs(lr - 3e-3), 0, 0, np.zeros(0), np.zeros((0, 6)))

    monkeypatch.setattr(baselines, "score", score)
    rate, means = baselines.choose_rate("gru", baselines.inner_folds(corpus), SETTINGS)
    assert rate == 3e-3 and tuple(means) == baselines.RATES["gru"]


def test_the_table_has_every_held_out_fold_and_is_written(tmp_path, capsys):
    features = write(small_corpus(), tmp_path / "f.pkl")
    argv = ["--features", str(features), "--networks", "logistic,gru", "--lr", "0.01", "--seeds", "0,1", "--folds", "2"]
    assert baselines.main([*argv, "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    rows = pd.read_csv(tmp_path / "out/baselines.csv")
    assert rows.groupby("network").size().to_dict() == {"gru": 4, "logistic": 4}
    written = (tmp_path / "out/baselines.md").read_text()
    assert written in capsys.readouterr().out
    fold = rows[(rows.network == "gru") & (rows.fold == "2of2")]["weighted_f1"].mean()
    assert "2of2" in written and f"{fold:.2f}" in written


def test_a_seed_that_was_stopped_between_its_folds_does_not_count(tmp_path, monkeypatch, capsys):
    features, scores = write(small_corpus(), tmp_path / "f.pkl"), iter([60.0, 70.0, 80.0])

    def score(*given):
        if (f1 := next(scores, None)) is None:
            raise KeyboardInterrupt
        return baselines.Score(f1, 1.0, 7, np.zeros(0), np.zeros((0, 6)))

    monkeypatch.setattr(baselines, "score", score)
    argv = ["--features", str(features), "--networks", "gru", "--lr", "0.01", "--seeds", "0,1", "--folds", "2"]
    assert baselines.main([*argv, "--device", "cpu"]) == 130
    assert "| gru | lr 0.01 | 1 | 65.00 ± – | 60.00 | 70.00 |" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--networks", "gru,what"], ["--lr", "0"], ["--lr", "nan"]])
def test_what_cannot_be_is_refused_in_a_line(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        baselines.main(["--demo", *argv])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_too_few_dialogues_to_choose_a_rate_on_are_told(tmp_path, capsys):
    features = write(small_corpus(train=2), tmp_path / "f.pkl")
    assert baselines.main(["--features", str(features), "--networks", "gru", "--device", "cpu"]) == 2
    assert "give --lr" in capsys.readouterr().err
