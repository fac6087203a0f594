"""The synthetic corpus: dialogues of IEMOCAP's shape whose structure is known, to try GAN-FFN without data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from sklearn.metrics import f1_score

from dataloader import IEMOCAP_LABELS, Corpus, Dialogue

IEMOCAP_COUNTS = (648, 1084, 1708, 1103, 1041, 1849)  # utterances a class, all five sessions
SHARES = np.array(IEMOCAP_COUNTS) / sum(IEMOCAP_COUNTS)
PERSIST, REACT = 0.45, 0.3  # chance to keep one's emotion, to react to the other's; else a new one by the shares
NEIGHBOUR = (4, 2, 1, 5, 0, 3)  # the emotion one reacts with: happy and excited, sad and neutral, angry and frustrated
# What each modality shows: classes of one number look alike in it.
VIEWS = {"text": (0, 1, 2, 3, 0, 3), "visual": (0, 1, 1, 2, 3, 2), "acoustic": (0, 1, 0, 2, 2, 3)}
VIEW_DISTANCE = {"text": 1.6, "visual": 1.2, "acoustic": 1.4}  # between two views, in standard deviations of the noise


def synthetic_corpus(
    *,
    seed: int = 0,
    train: int = 120,
    test: int = 31,
    mean_length: float = 49.0,
    dims: Mapping[str, int] | None = None,
) -> Corpus:
    """Dialogues of IEMOCAP's shape whose structure is known.

    Two speakers alternate, now and then keeping the turn. A speaker's next emotion is, with chance `PERSIST`, the last
    one of their own; with chance `REACT`, an answer to the other's last one: its neighbour in `NEIGHBOUR`, or itself
    so often that the class shares stay IEMOCAP's; else drawn by those shares. Each modality shows only which of its
    `VIEWS` the emotion belongs to, so that the three together tell what none tells alone: a view is one of a few
    orthogonal directions in the modality's space, their points `VIEW_DISTANCE` apart, under Gaussian noise of variance
    1 in every direction; the columns then get scales and offsets of their own.

    Args:
        seed: Decides everything.
        train: Training dialogues, dealt to sessions 1 to 4.
        test: Test dialogues, of session 5.
        mean_length: Utterances a dialogue in the mean; lengths run from 8 to 110 as in IEMOCAP.
        dims: Modality to width, at least 4 each; IEMOCAP's 100, 512 and 100 unless given.
    """
    rng = np.random.default_rng(seed)
    dims = dict(dims or {"text": 100, "visual": 512, "acoustic": 100})
    basis, scale, offset = synthetic_views(dims, rng)

    def one(dialogue_id: str) -> Dialogue:
        n = int(np.clip(round(rng.normal(mean_length, mean_length / 3)), 8, 110))
        speakers, labels = _synthetic_turns(n, rng)
        features = {}
        for m, d in dims.items():
            shown = VIEW_DISTANCE[m] / np.sqrt(2) * basis[m][np.take(VIEWS[m], labels)]
            features[m] = ((shown + rng.normal(size=(n, d))) * scale[m] + offset[m]).astype(np.float32)
        names = tuple("FM"[s] for s in speakers)
        return Dialogue(
            dialogue_id,
            features,
            labels,
            names,
            sentences=tuple(f"({IEMOCAP_LABELS[c]})" for c in labels),
            utterances=tuple(f"{dialogue_id}_{name}{i:03d}" for i, name in enumerate(names)),
        )

    ids = {
        "train": tuple(f"Ses0{i % 4 + 1}_synthetic{i // 4:02d}" for i in range(train)),
        "test": tuple(f"Ses05_synthetic{i:02d}" for i in range(test)),
    }
    recipe = f"synthetic {seed} {train} {test} {mean_length} {dims}"
    return Corpus(
        "synthetic corpus",
        {i: one(i) for split in ids.values() for i in split},
        ids,
        IEMOCAP_LABELS,
        hashlib.sha256(recipe.encode()).hexdigest(),
    )


def synthetic_views(dims: Mapping[str, int], rng: np.random.Generator) -> tuple[dict[str, np.ndarray], ...]:
    """What `synthetic_corpus` draws first, by modality: a direction a view ``[V, d]``, scales and offsets ``[d]``."""
    basis = {m: np.linalg.qr(rng.normal(size=(d, 1 + max(VIEWS[m]))))[0].T for m, d in dims.items()}
    scale = {m: rng.lognormal(0, 1, d) for m, d in dims.items()}
    offset = {m: rng.normal(0, 5, d) for m, d in dims.items()}
    return basis, scale, offset


def _synthetic_turns(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Speakers (0 or 1) and emotions of n turns; see `synthetic_corpus`."""
    speakers = np.cumsum(rng.random(n) < 0.8) % 2
    emotion = rng.choice(len(SHARES), size=2, p=SHARES)  # of each speaker, before they first speak
    labels = np.empty(n, dtype=np.int64)
    for t, speaker in enumerate(speakers):
        chance, other = rng.random(), emotion[1 - speaker]
        if chance > PERSIST + REACT:
            emotion[speaker] = rng.choice(len(SHARES), p=SHARES)
        elif chance > PERSIST:
            answer = NEIGHBOUR[other]
            # The Metropolis rule: answering by it leaves the class shares as they are.
            emotion[speaker] = answer if rng.random() < SHARES[answer] / SHARES[other] else other
        labels[t] = emotion[speaker]
    return speakers, labels


# What can be known of it ----------------------------------------------------------------------------------------------


def transition() -> np.ndarray:
    """Chances ``[own last, other's last, own next]`` of the next emotion, as `synthetic_corpus` describes them."""
    classes = len(SHARES)
    answer = np.zeros((classes, classes))
    for other, neighbour in enumerate(NEIGHBOUR):
        accepted = min(1.0, SHARES[neighbour] / SHARES[other])
        answer[other, neighbour] += accepted
        answer[other, other] += 1 - accepted
    chances = np.tile((1 - PERSIST - REACT) * SHARES, (classes, classes, 1)) + REACT * answer[None]
    return chances + PERSIST * np.eye(classes)[:, None]


def likelihood(dialogue: Dialogue, views: tuple[dict[str, np.ndarray], ...]) -> np.ndarray:
    """Likelihood of every emotion by utterance, ``[n, classes]``, up to a factor an utterance."""
    logarithm = np.zeros((len(dialogue), len(SHARES)))
    for modality, x in dialogue.features.items():
        basis, scale, offset = (each[modality] for each in views)
        along = ((x - offset) / scale) @ basis.T  # all that the modality tells of its view
        logarithm += VIEW_DISTANCE[modality] / np.sqrt(2) * along[:, VIEWS[modality]]
    return np.exp(logarithm - logarithm.max(1, keepdims=True))


def posterior(evidence: np.ndarray, speakers: np.ndarray) -> np.ndarray:
    """Most probable emotion of each turn given the whole dialogue, ``[n]``; speakers are 0 or 1."""
    chances, classes = transition(), len(SHARES)

    def seen(t: int) -> np.ndarray:
        return evidence[t][:, None] if speakers[t] == 0 else evidence[t][None]

    state = np.outer(SHARES, SHARES)  # of both speakers' last emotions
    forward = []
    for t, speaker in enumerate(speakers):
        state = np.einsum("ab,abn->nb" if speaker == 0 else "ab,ban->an", state, chances) * seen(t)
        state /= state.sum()
        forward.append(state)
    backward, best = np.ones((classes, classes)), np.empty(len(speakers), dtype=int)
    for t in reversed(range(len(speakers))):
        best[t] = (forward[t] * backward).sum(1 if speakers[t] == 0 else 0).argmax()
        ahead = seen(t) * backward
        backward = np.einsum("nb,abn->ab" if speakers[t] == 0 else "an,ban->ab", ahead, chances)
        backward /= backward.sum()
    return best


def ceiling(corpus: Corpus, seed: int = 0) -> dict[str, float]:
    """Weighted F1 in percent on the test split of `synthetic_corpus`: from the ``utterance`` alone, in ``context``."""
    views = synthetic_views(corpus.dims, np.random.default_rng(seed))
    labels, alone, context = [], [], []
    for dialogue in corpus.split("test"):
        evidence = likelihood(dialogue, views)
        labels.append(dialogue.labels)
        alone.append((evidence * SHARES).argmax(1))
        context.append(posterior(evidence, np.array(["FM".index(name) for name in dialogue.speakers])))
    truth = np.concatenate(labels)
    return {
        name: 100 * f1_score(truth, np.concatenate(chosen), average="weighted")
        for name, chosen in (("utterance", alone), ("context", context))
    }
