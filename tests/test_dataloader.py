"""Splits, standardisation, batches, and what the synthetic corpus promises."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

import dataloader
from dataloader import IGNORE_LABEL, Standardiser, batches, collate, hold_out_validation, session_of
from files import InputError
from synthetic import IEMOCAP_COUNTS, synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(train=20, test=4, mean_length=12, dims=DIMS)


def test_validation_is_carved_from_train_alone_and_balanced_over_sessions(corpus):
    carved = hold_out_validation(corpus, 0.2, seed=3)
    train, valid = set(carved.splits["train"]), set(carved.splits["valid"])
    assert train | valid == set(corpus.splits["train"])
    assert not train & valid
    assert carved.splits["test"] == corpus.splits["test"]
    assert sorted(map(session_of, valid)) == ["Ses01", "Ses02", "Ses03", "Ses04"]


def test_validation_depends_on_the_seed_and_on_nothing_else(corpus):
    shuffled = replace(corpus, splits={**corpus.splits, "train": corpus.splits["train"][::-1]})
    first, again = hold_out_validation(corpus, 0.2, seed=3), hold_out_validation(shuffled, 0.2, seed=3)
    assert set(first.splits["valid"]) == set(again.splits["valid"])
    assert len({hold_out_validation(corpus, 0.2, seed=s).splits["valid"] for s in range(5)}) > 1


def test_a_shipped_validation_split_is_kept(corpus):
    shipped = replace(
        corpus, splits={**corpus.splits, "train": corpus.splits["train"][1:], "valid": corpus.splits["train"][:1]}
    )
    assert hold_out_validation(shipped, 0.5, seed=0).splits == shipped.splits


def test_too_few_dialogues_to_validate_are_refused(corpus):
    one = replace(corpus, splits={**corpus.splits, "train": corpus.splits["train"][:1]})
    with pytest.raises(InputError, match="too few"):
        hold_out_validation(one, 0.1, seed=0)


def test_standardisation_knows_the_training_dialogues_only(corpus):
    standardise = Standardiser.fit(corpus.split("train"))
    train = np.concatenate([standardise(d).features["text"] for d in corpus.split("train")])
    assert np.allclose(train.mean(0), 0, atol=1e-4)
    assert np.allclose(train.std(0), 1, atol=1e-4)
    test = corpus.split("test")[0]
    expected = (test.features["text"] - standardise.mean["text"]) / standardise.scale["text"]
    assert np.allclose(standardise(test).features["text"], expected, atol=1e-5)


def test_statistics_of_a_small_corpus_are_those_of_all_rows_at_once_to_the_bit(corpus):
    fitted = Standardiser.fit(corpus.split("train"))
    rows = np.concatenate([d.features["visual"] for d in corpus.split("train")]).astype(np.float64)
    at_once = StandardScaler().fit(rows)
    assert (fitted.mean["visual"] == at_once.mean_).all() and (fitted.scale["visual"] == at_once.scale_).all()


@pytest.mark.parametrize("block", [1, 40, 1000])
def test_statistics_gathered_block_by_block_are_the_same(corpus, block, monkeypatch):
    some = [replace(d, features={"text": d.features["text"].copy()}) for d in corpus.split("train")]
    for d in some[:7]:
        d.features["text"][:] = np.nan  # blocks in which nothing is known
    whole = Standardiser.fit(some)
    monkeypatch.setattr(dataloader, "BLOCK", block)
    blocks = [len(x) for x in dataloader.row_blocks([d.features["text"] for d in some])]
    assert max(blocks) * 8 <= max(block, 8) and sum(blocks) == sum(map(len, some))
    fitted = Standardiser.fit(some)
    assert np.allclose(fitted.mean["text"], whole.mean["text"], rtol=1e-10, atol=1e-10)
    assert np.allclose(fitted.scale["text"], whole.scale["text"], rtol=1e-10)


def test_a_standardised_corpus_is_no_second_copy(corpus, monkeypatch):
    dialogue = corpus.split("train")[0]
    wide = replace(dialogue, features={"text": np.ones((len(dialogue), 1000), np.float32)})
    size = wide.features["text"].nbytes
    monkeypatch.setattr(dataloader, "KEPT", 5 * size)
    standardise = Standardiser.fit([wide])
    tracemalloc.start()
    standardised = [standardise(wide) for _ in range(100)]
    assert sum(d.features["text"].nbytes for d in standardised) == 100 * size
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 5 * size <= held < 10 * size


@pytest.mark.parametrize("room", [0, 2**25])
def test_standardised_features_of_a_small_corpus_are_kept_and_are_the_same(corpus, room, monkeypatch):
    monkeypatch.setattr(dataloader, "KEPT", room)
    standardise = Standardiser.fit(corpus.split("train"))
    for dialogue in corpus.split("train"):
        standardised = standardise(dialogue)
        first, again = standardised.features["text"], standardised.features["text"]
        assert (first is again) == bool(room)
        expected = (dialogue.features["text"] - standardise.mean["text"]) / standardise.scale["text"]
        assert np.array_equal(first, expected.astype(np.float32)) and np.array_equal(first, again)


def test_the_first_turns_of_a_dialogue_are_a_dialogue(corpus):
    dialogue = corpus.split("train")[0]
    part = Standardiser.fit(corpus.split("train"))(dialogue).first(3)
    batch = dataloader.collate([part])
    assert batch.mask.shape == (1, 3) and batch.labels[0].tolist() == dialogue.labels[:3].tolist()
    assert part.speakers == dialogue.speakers[:3] and part.utterances == dialogue.utterances[:3]
    assert len(dialogue.first(10_000)) == len(dialogue)


def test_a_constant_column_stays_finite(corpus):
    flat = [replace(d, features={"text": np.full((len(d), 3), 7, np.float32)}) for d in corpus.split("train")]
    assert not Standardiser.fit(flat)(flat[0]).features["text"].any()


def test_a_column_that_is_constant_but_for_rounding_is_not_scaled_up(corpus):
    """Another machine rounds otherwise, and what it rounds would be all that the network sees."""
    rng = np.random.default_rng(0)

    def rounded(d, size):
        x = np.concatenate([d.features["text"], size * rng.normal(size=(len(d), 1))], 1)
        return replace(d, features={"text": x.astype(np.float32)})

    standardise = Standardiser.fit([rounded(d, 1e-33) for d in corpus.split("train")])
    elsewhere = standardise(rounded(corpus.split("test")[0], 1e-7)).features["text"]
    assert np.abs(elsewhere[:, -1]).max() < 1e-5 and elsewhere[:, 0].std() > 0.1


def test_statistics_survive_being_saved(corpus):
    standardise = Standardiser.fit(corpus.split("train"))
    again = Standardiser.from_tensors(standardise.tensors())
    dialogue = corpus.split("test")[0]
    for modality, x in standardise(dialogue).features.items():
        assert np.array_equal(again(dialogue).features[modality], x)


def test_a_batch_is_padded_and_masked(corpus):
    dialogues = corpus.split("train")[:3]
    batch = collate(dialogues)
    assert batch.mask.sum(1).tolist() == [len(d) for d in dialogues]
    assert (batch.labels[~batch.mask] == IGNORE_LABEL).all()
    for i, d in enumerate(dialogues):
        assert batch.labels[i, : len(d)].tolist() == d.labels.tolist()
        assert torch.equal(batch.features["text"][i, : len(d)], torch.from_numpy(d.features["text"]))


def test_speakers_are_numbered_by_their_first_turn(corpus):
    dialogue = replace(corpus.split("train")[0], speakers=("Zoe", "Adam", "Zoe", "Eve"), labels=np.zeros(4, np.int64))
    assert dialogue.speaker_index.tolist() == [0, 1, 0, 2]


def test_shuffling_is_seeded_and_every_dialogue_comes_once(corpus):
    def order(seed):
        return [i for b in batches(corpus.split("train"), 3, torch.Generator().manual_seed(seed)) for i in b.ids]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == sorted(corpus.splits["train"])


# The synthetic corpus of the demo, at its full size.


@pytest.fixture(scope="module")
def demo():
    return synthetic_corpus()


def test_the_synthetic_corpus_has_the_shape_of_iemocap(demo):
    assert (len(demo.splits["train"]), len(demo.splits["test"])) == (120, 31)
    assert demo.dims == {"text": 100, "visual": 512, "acoustic": 100}
    assert demo.num_speakers == 2
    lengths = [len(d) for d in demo.dialogues.values()]
    assert 8 <= min(lengths) <= max(lengths) <= 110
    assert 6500 < sum(lengths) < 8500
    counts = np.bincount(np.concatenate([d.labels for d in demo.dialogues.values()]))
    assert np.allclose(counts / counts.sum(), np.array(IEMOCAP_COUNTS) / sum(IEMOCAP_COUNTS), atol=0.03)


def f1_of_a_probe(corpus, modalities, context):
    """Weighted F1 of logistic regression, seeing also its guesses for the utterances around where context is given."""
    standardise = Standardiser.fit(corpus.split("train"))

    def table(split):
        return [np.concatenate([standardise(d).features[m] for m in modalities], 1) for d in corpus.split(split)]

    labels = {s: np.concatenate([d.labels for d in corpus.split(s)]) for s in ("train", "test")}
    probe = LogisticRegression(C=0.01, max_iter=200).fit(np.concatenate(table("train")), labels["train"])
    if not context:
        return f1_score(labels["test"], probe.predict(np.concatenate(table("test"))), average="weighted")

    def around(split):
        rows = []
        for x in table(split):
            guess = np.pad(probe.predict_log_proba(x), ((2, 2), (0, 0)))
            rows.append(np.concatenate([guess[i : i + len(x)] for i in range(5)], 1))
        return np.concatenate(rows)

    second = LogisticRegression(C=0.01, max_iter=500).fit(around("train"), labels["train"])
    return f1_score(labels["test"], second.predict(around("test")), average="weighted")


def test_three_modalities_beat_the_best_one_and_context_beats_none(demo):
    best_single = max(f1_of_a_probe(demo, [m], context=False) for m in demo.dims)
    fused = f1_of_a_probe(demo, list(demo.dims), context=False)
    assert fused > best_single + 0.05
    assert f1_of_a_probe(demo, list(demo.dims), context=True) > fused + 0.01
