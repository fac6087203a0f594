"""Layouts that are one pickle, and the writing of the one that the field's own loaders read, the 9-tuple.

Shapes use n utterances of a dialogue and d features.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dataloader import IGNORE_LABEL, Corpus
from feature_files.checks import ID, MELD_LABELS, README, Parts, id_of, is_row, width_of
from feature_files.safe_pickle import Sample
from files import InputError, replacing


def identify_pickle(file: str, content: Any) -> Parts:
    """The fields of what a pickle holds, by the number and kinds of its items.

    Raises:
        InputError: If it is of no known layout.
    """
    if isinstance(content, Mapping) and {"train", "test"} <= set(content):
        return samples(file, content)
    kind = type(content).__name__
    if not isinstance(content, tuple | list):
        raise InputError(f"{file}: holds a {kind}, and no known layout is one; see {README}")
    is_table = [isinstance(item, Mapping) for item in content]
    for length, layout, tables, others in (
        (9, meld_raw, (0, 1, 2, 3, 4, 5, 8), (6, 7)),
        (9, nine_tuple, range(7), (7, 8)),
        (10, meld_trimodal, range(7), (7, 8)),
        (10, cosmic_iemocap, range(7), (7, 8, 9)),
        (11, cosmic_meld, range(8), (8, 9, 10)),
        (12, layered_iemocap, range(10), (10, 11)),
        (13, layered_meld, range(10), (10, 11)),
        (14, graphsmile_meld, range(11), (11, 12)),
        (7, text_only, range(5), (5, 6)),
    ):
        if len(content) != length or any(is_table[k] for k in others):
            continue
        if layout is meld_raw and content[6] is None and not is_table[8]:
            continue  # no list of train and no table of sentiments: the other nine, without sentences
        if layout is meld_trimodal and _is_rows(content[2]):
            continue  # where these have labels, the other layout of ten has the first text layer
        if sum(is_table[k] for k in tables) >= len(tables) // 2:
            return layout(content)
    raise InputError(f"{file}: a {kind} of {len(content)} items is no known layout; see {README}")


def _is_rows(table: Any) -> bool:
    return isinstance(table, Mapping) and any(width_of(row) is not None for row in table.values())


# Nine items of the same kinds, by the widths of text, visual and audio.
_BY_WIDTHS = {(100, 512, 100): "iemocap-9", (100, 342, 1582): "mmgcn-iemocap", (1024, 512, 100): "sdt"}


def nine_tuple(items: Sequence[Any]) -> Parts:
    """``iemocap-9``, ``nine-tuple``, ``mmgcn-iemocap``, and ``sdt`` with four classes.

    The items are ids, speakers, labels, text, audio, visual, sentences, train, test.

    Audio comes before visual on disk.
    """
    ids, speakers, labels, text, audio, visual, sentences, train, test = items
    features = {"text": text, "visual": visual, "acoustic": audio}
    layout = _BY_WIDTHS.get(_widths(features), "nine-tuple")
    return Parts(layout, labels, speakers, features, {"train": train, "test": test}, sentences, ids)


def text_only(items: Sequence[Any]) -> Parts:
    """``nine-tuple`` without audio and visual: ids, speakers, labels, text, sentences, train, test."""
    ids, speakers, labels, text, sentences, train, test = items
    return Parts("nine-tuple", labels, speakers, {"text": text}, {"train": train, "test": test}, sentences, ids)


def meld_raw(items: Sequence[Any]) -> Parts:
    """``meld-9``: ids, speakers, emotions, text, audio, sentences, train, test, sentiments: nine items as well."""
    ids, speakers, labels, text, audio, sentences, train, test, sentiment = items
    features = {"text": text, "acoustic": audio}
    splits = {"train": train, "test": test}
    return Parts("meld-9", labels, speakers, features, splits, sentences, ids, MELD_LABELS, sentiment)


def meld_trimodal(items: Sequence[Any]) -> Parts:
    """``mmgcn-meld``: ids, speakers, labels, text, audio, visual, sentences, train, test, one more."""
    ids, speakers, labels, text, audio, visual, sentences, train, test, extra = items
    features = {"text": text, "visual": visual, "acoustic": audio}
    splits = {"train": train, "test": test}
    return Parts(
        "mmgcn-meld", labels, speakers, features, splits, sentences, ids, MELD_LABELS, _labels_like(labels, extra)
    )


def cosmic_iemocap(items: Sequence[Any]) -> Parts:
    """``cosmic``: speakers, labels, four text layers (the last of the network first), sentences, train, test, valid."""
    speakers, labels, *layers, sentences, train, test, valid = items
    splits = {"train": train, "valid": valid, "test": test}
    return Parts("cosmic", labels, speakers, {"text": layers}, splits, sentences)


def cosmic_meld(items: Sequence[Any]) -> Parts:
    """``cosmic`` for MELD: speakers, emotions, sentiments, four text layers, sentences, train, test, valid."""
    speakers, labels, sentiment, *layers, sentences, train, test, valid = items
    splits = {"train": train, "valid": valid, "test": test}
    return Parts(
        "cosmic", labels, speakers, {"text": layers}, splits, sentences, label_names=MELD_LABELS, sentiment=sentiment
    )


def layered_iemocap(items: Sequence[Any]) -> Parts:
    """``sdt``: ids, speakers, labels, four text layers, audio, visual, sentences, train, test."""
    ids, speakers, labels, *layers, audio, visual, sentences, train, test = items
    features = {"text": layers, "visual": visual, "acoustic": audio}
    return Parts("sdt", labels, speakers, features, {"train": train, "test": test}, sentences, ids)


def layered_meld(items: Sequence[Any]) -> Parts:
    """``sdt`` as SDT has MELD: the same twelve, then one more."""
    parts = layered_iemocap(items[:12])
    return replace(parts, label_names=MELD_LABELS, sentiment=_labels_like(parts.labels, items[12]))


def graphsmile_meld(items: Sequence[Any]) -> Parts:
    """``sdt`` as GraphSmile has MELD: the same twelve with the sentiments fourth, then one more."""
    return replace(layered_iemocap([*items[:3], *items[4:13]]), label_names=MELD_LABELS, sentiment=items[3])


def samples(file: str, content: Mapping[str, Any]) -> Parts:
    """``cogmen``: train, dev and test, each a list of samples: objects or dictionaries with a dialogue's fields."""
    tables: dict[str, dict] = {name: {} for name in ("labels", "speakers", "text", "audio", "visual", "sentence")}
    splits: dict[str, list] = {}
    for split in ("train", "dev", "test"):
        members = splits["valid" if split == "dev" else split] = []
        listed = content.get(split)
        if listed is not None and not is_row(listed):
            raise InputError(
                f"{file}: {split}: a {type(listed).__name__} where a list of samples belongs; see {README}"
            )
        for sample in () if listed is None else listed:
            fields = sample.fields if isinstance(sample, Sample) else sample
            if not isinstance(fields, Mapping) or not isinstance(fields.get("vid"), ID):
                raise InputError(f"{file}: {split}: a sample has no 'vid'; give each sample its dialogue's id")
            vid = id_of(fields["vid"])
            if vid in tables["labels"]:
                raise InputError(f"{file}: {split}: dialogue {vid!r:.80}: two samples of it; give each dialogue one")
            members.append(vid)
            for name, table in tables.items():
                # Objects say ``speaker`` and ``label``, dictionaries ``speakers`` and ``labels``.
                table[vid] = fields.get(name, fields.get(name.removesuffix("s")))
    features = {"text": tables["text"], "visual": tables["visual"], "acoustic": tables["audio"]}
    features = {m: t for m, t in features.items() if any(row is not None for row in t.values())}
    return Parts("cogmen", tables["labels"], tables["speakers"], features, splits, tables["sentence"])


def _widths(features: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The width of each modality's first row, to tell layouts apart."""
    tables = (t if isinstance(t, Mapping) else {} for t in features.values())
    return tuple(next(map(width_of, table.values()), None) for table in tables)


def _labels_like(labels: Any, extra: Any) -> Any:
    """The unnamed last item of some MELD files, where it is a second set of labels for the same dialogues."""
    same = isinstance(extra, Mapping) and isinstance(labels, Mapping) and extra.keys() == labels.keys()
    return extra if same and not _is_rows(extra) else None


class _OldPathPickler(pickle._Pickler):
    """A pickler that names NumPy's array function as NumPy 1 does, which NumPy 2 reads as well."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, type(np.array): save_global}


def write_nine_tuple(corpus: Corpus, path: str | Path) -> None:
    """Write a corpus as the 9-tuple that the field's own loaders read.

    The layout has no third split: a ``valid`` split is written into train, after it. Modalities the corpus lacks are
    arrays ``[n, 0]``. Names of classes are lost.

    Args:
        corpus: What to write.
        path: The file, replaced whole or not at all.

    Raises:
        InputError: If the file cannot be written, or an utterance has no label.
    """
    dialogues = corpus.dialogues.values()
    if without := sum(int((d.labels == IGNORE_LABEL).sum()) for d in dialogues):
        raise InputError(
            f"{path}: the 9-tuple has no place for utterances without a label ({without} here); write a .safetensors"
        )

    def features(modality: str) -> dict[str, np.ndarray]:
        return {
            d.id: np.array(d.features.get(modality, np.zeros((len(d), 0))), np.float32, order="C") for d in dialogues
        }

    content = (
        {d.id: list(d.utterances) for d in dialogues},
        {d.id: list(d.speakers) for d in dialogues},
        {d.id: np.asarray(d.labels).tolist() for d in dialogues},
        features("text"),
        features("acoustic"),
        features("visual"),
        {d.id: list(d.sentences) for d in dialogues},
        [*corpus.splits.get("train", ()), *corpus.splits.get("valid", ())],
        list(corpus.splits.get("test", ())),
    )
    with replacing(path) as temporary, temporary.open("wb") as stream:
        _OldPathPickler(stream, protocol=3).dump(content)
