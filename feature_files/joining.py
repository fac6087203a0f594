"""Joining: the text of one file with the other modalities of another."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np

from dataloader import Corpus, Dialogue
from files import InputError


def join(text: Corpus, other: Corpus, name: str) -> Corpus:
    """The text of one corpus with the visual and acoustic features of another, by utterance id or by dialogue id.

    Args:
        text: Has the text, sentences and class names.
        other: Has the other modalities of the same utterances, in any order; of the same order where either file
            names no utterances.
        name: Of the result, for messages.

    Raises:
        InputError: If an utterance of either has no match, or labels or splits differ.
    """
    for corpus, wanted in ((text, {"text"}), (other, {"visual", "acoustic"})):
        if not wanted & set(corpus.dims):
            raise InputError(f"{corpus.name}: no {' or '.join(sorted(wanted))} features to join; name another file")
    place = {(i, u): (d, k) for i, d in other.dialogues.items() for k, u in enumerate(d.utterances)}
    total, named = len(place), Counter(u for _, u in place)
    place |= {u: found for (_, u), found in place.items() if named[u] == 1}  # files cut dialogues otherwise
    dialogues, used = {}, 0
    for i, dialogue in text.dialogues.items():
        twin = other.dialogues.get(i)
        keys = [(i, u) if (i, u) in place else u for u in dialogue.utterances]
        if all(key in place for key in keys):
            found = [place[key] for key in keys]
        elif twin and len(twin) == len(dialogue) and (_unnamed(twin) or _unnamed(dialogue)):
            found = [(twin, k) for k in range(len(twin))]
        else:
            lost = next(key for key in keys if key not in place)
            raise InputError(
                f"{other.name}: dialogue {i!r:.80}: no utterance {lost!r:.80}; join files of the same utterances"
            )
        if [int(d.labels[k]) for d, k in found] != dialogue.labels.tolist():
            raise InputError(
                f"{other.name}: labels: dialogue {i!r:.80}: not those of {text.name}; join files of one set"
            )
        used += len(found)
        features = {m: np.stack([d.features[m][k] for d, k in found]) for m in other.dims if m != "text"}
        dialogues[i] = replace(dialogue, features=features | {"text": dialogue.features["text"]})
    if used != total:
        raise InputError(f"{text.name}: {total - used} utterances of {other.name} are not in it; join files that match")
    parts = (("train", "valid"), ("test",))
    halves = [[{i for split in part for i in c.splits.get(split, ())} for part in parts] for c in (text, other)]
    if halves[0] != halves[1]:
        raise InputError(f"{text.name}: train and test: not those of {other.name}; join files of the same splits")
    splits = text.splits if "valid" in text.splits else other.splits
    sha256 = hashlib.sha256(f"{text.sha256}{other.sha256}".encode()).hexdigest()
    return replace(text, name=name, dialogues=dialogues, splits=splits, sha256=sha256)


def _unnamed(dialogue: Dialogue) -> bool:
    """Whether the utterances have only the names that `Checks.dialogue` makes."""
    return dialogue.utterances == tuple(f"{dialogue.id}_{k}" for k in range(len(dialogue)))
