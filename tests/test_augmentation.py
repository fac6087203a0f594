"""What training does to dialogues and losses: noise, left-out utterances, focal loss, the reference's game."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dataloader import IGNORE_LABEL, SESSION_SMOOTHING, collate, session_logit_adjustment, session_of
from model import LABEL_SMOOTHING, AdversarialFusion, emotion_loss
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return collate(synthetic_corpus(train=8, test=1, mean_length=12, dims=DIMS).split("train"))


def test_noise_is_as_strong_as_told_and_stays_out_of_the_padding(batch):
    noisy = batch.add_noise(0.5)
    for m, x in batch.features.items():
        added = noisy.features[m] - x
        assert added[batch.mask].std().item() == pytest.approx(0.5, rel=0.1)
        assert not added[~batch.mask].any()
    assert batch.add_noise(0) is batch


def test_left_out_utterances_are_as_padding_and_no_dialogue_vanishes(batch):
    thin = batch.drop_utterances(0.5)
    gone = batch.mask & ~thin.mask
    assert 0.3 < (gone.sum() / batch.mask.sum()).item() < 0.7
    assert (thin.labels[gone] == IGNORE_LABEL).all()
    assert not any(x[gone].any() for x in thin.features.values())
    assert torch.equal(thin.labels[thin.mask], batch.labels[thin.mask])
    assert batch.drop_utterances(0.99).mask.any(1).all()
    assert batch.drop_utterances(0) is batch


def test_missing_modalities_stay_missing_under_noise_and_thinning(batch):
    augmented = batch.drop_modality({"text": 0.5}).add_noise(0.5).drop_utterances(0.3)
    lacking = ~augmented.has("text")
    assert not augmented.features["text"][lacking].any()
    assert not (augmented.has("text") & ~augmented.mask).any()


def test_focal_loss_weighs_the_utterance_by_what_is_missing():
    torch.manual_seed(0)
    logits, labels, weight = torch.randn(9, 4), torch.randint(4, (9,)), torch.rand(4) + 0.5
    smoothing = LABEL_SMOOTHING
    for w in (None, weight):
        plain = F.cross_entropy(logits, labels, w, label_smoothing=smoothing)
        assert torch.allclose(emotion_loss(logits, labels, w, 0), plain)
    p = torch.stack([row[label] for row, label in zip(logits.softmax(-1), labels, strict=True)])
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    assert torch.allclose(emotion_loss(logits, labels, None, 2), (each * (1 - p) ** 2).mean())


def test_a_session_s_shares_of_emotions_are_accounted_for_against_those_of_all():
    corpus = synthetic_corpus(train=12, test=1, mean_length=30, dims=DIMS)
    dialogues = corpus.split("train")
    shifts = session_logit_adjustment(dialogues, 6)

    def log_shares(some):
        counts = sum(torch.from_numpy(d.labels).bincount(minlength=6) for d in some)
        smoothed = counts + SESSION_SMOOTHING * len({session_of(d.id) for d in some})
        return (smoothed / smoothed.sum()).log()

    for d in dialogues:
        own = log_shares([e for e in dialogues if session_of(e.id) == session_of(d.id)])
        assert torch.allclose(shifts[d.id], own - log_shares(dialogues), atol=1e-6)
    assert max(shift.abs().max() for shift in shifts.values()) > 0.1


def test_without_sessions_in_the_ids_there_is_nothing_to_account_for():
    dialogues = synthetic_corpus(train=6, test=1, mean_length=12, dims=DIMS).split("train")
    nameless = [replace(d, id=f"dialogue{i}") for i, d in enumerate(dialogues)]
    assert not any(shift.any() for shift in session_logit_adjustment(nameless, 6).values())


def test_the_game_of_the_reference_is_binary_cross_entropy(batch):
    fusion = AdversarialFusion({"text": 8, "acoustic": 5}, fused_channels=16, relativistic=False).eval()
    fused = fusion(batch)
    shared = fusion.shared(batch, fused)
    real, fake = shared["acoustic"], shared["text"]
    on_real, on_fake = (fusion.discriminators["acoustic"](x) for x in (real, fake))
    one, zero = torch.ones_like(on_real), torch.zeros_like(on_real)
    told_apart = F.binary_cross_entropy_with_logits(on_real, one) + F.binary_cross_entropy_with_logits(on_fake, zero)
    assert torch.allclose(fusion.discriminator_losses(batch, fused, gamma=1.0)["acoustic"], told_apart)
    passed = F.binary_cross_entropy_with_logits(on_fake, one)
    assert torch.allclose(fusion.generator_losses(batch, fused)["text"]["adversarial"], passed)
