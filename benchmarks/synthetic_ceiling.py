"""The best weighted F1 that anything can reach on the synthetic corpus, from the recipe it is made by.

    python benchmarks/synthetic_ceiling.py

The exact posterior of every emotion is computed with the true parameters, twice: from the utterance alone, and from
the whole dialogue by the forward-backward algorithm (Rabiner 1989, section III) over the pair of both speakers'
emotions. The most probable class makes the fewest errors; weighted F1 of that choice is the ceiling, up to the luck
of the sample and the small freedom F1 leaves against accuracy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataloader import Corpus, Dialogue
from synthetic import IEMOCAP_COUNTS, NEIGHBOUR, PERSIST, REACT, VIEW_DISTANCE, VIEWS, synthetic_corpus, synthetic_views

SHARES = np.array(IEMOCAP_COUNTS) / sum(IEMOCAP_COUNTS)


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


def main() -> None:
    """Print the two ceilings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the corpus (the demo's is 0)")
    seed = parser.parse_args().seed
    best = ceiling(synthetic_corpus(seed=seed), seed)
    print("| weighted F1 that cannot be beaten, synthetic corpus | |\n|---|--:|")
    print(f"| from each utterance alone | {best['utterance']:.2f} |")
    print(f"| from the whole dialogue | {best['context']:.2f} |")


if __name__ == "__main__":
    main()
