"""The data of a run: dialogues, corpora, splits, standardisation and batches.

Shapes use B dialogues, T utterances in the longest of them, and d features; arrays are batch-first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from files import InputError

MODALITIES = ("text", "visual", "acoustic")
IEMOCAP_LABELS = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
MOST_SPEAKERS = 16  # of a dialogue that are told apart: types of edges, and memory, grow with their square
IGNORE_LABEL = -100  # what torch's cross entropy skips; marks padding, and utterances without a label


@dataclass(frozen=True)
class Dialogue:
    """One dialogue of n utterances.

    Attributes:
        id: The dialogue's name in its feature file.
        features: Modality to float32 array ``[n, d_modality]``; a row of NaN where the utterance lacks the modality.
        labels: Class of each utterance, int64 ``[n]``; `IGNORE_LABEL` where it has none and is context for others.
        speakers: Name of each utterance's speaker, n strings.
        sentences: Transcript of each utterance, n strings.
        utterances: Name of each utterance, n strings.
        shared: Modality to the shared channels of the fused features ``[n, channels]``, once they stay as they are.
    """

    id: str
    features: Mapping[str, np.ndarray]
    labels: np.ndarray
    speakers: tuple[str, ...]
    sentences: tuple[str, ...]
    utterances: tuple[str, ...]
    shared: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def speaker_index(self) -> np.ndarray:
        """Speakers numbered by their first turn in this dialogue, int64 ``[n]``.

        Numbers within the dialogue, not names, so that a model trained on one set of people reads another. From
        number `MOST_SPEAKERS` - 1 on, all count as one.
        """
        order = {name: min(i, MOST_SPEAKERS - 1) for i, name in enumerate(dict.fromkeys(self.speakers))}
        return np.array([order[name] for name in self.speakers], dtype=np.int64)

    def first(self, turns: int) -> Dialogue:
        """Its first utterances, so many at most."""
        return replace(
            self,
            features={m: x[:turns] for m, x in self.features.items()},
            labels=self.labels[:turns],
            speakers=self.speakers[:turns],
            sentences=self.sentences[:turns],
            utterances=self.utterances[:turns],
            shared={m: x[:turns] for m, x in self.shared.items()},
        )


@dataclass(frozen=True)
class Corpus:
    """Dialogues, the splits they are in, and the names of the classes.

    Attributes:
        name: Where the corpus comes from, for messages.
        dialogues: Dialogue id to `Dialogue`.
        splits: ``train``, ``test`` and, where there is one, ``valid``, to dialogue ids.
        label_names: One name a class; their number is the number of classes.
        sha256: Checksum of the feature file, or of the recipe of a synthetic corpus.
        provenance: Where the feature file says it comes from: encoders, settings, sources; empty where it does not.
    """

    name: str
    dialogues: Mapping[str, Dialogue]
    splits: Mapping[str, tuple[str, ...]]
    label_names: tuple[str, ...]
    sha256: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.label_names)

    @property
    def dims(self) -> dict[str, int]:
        """Width of each modality that has any features, in the order text, visual, acoustic."""
        first = next(iter(self.dialogues.values()))
        return {m: first.features[m].shape[1] for m in MODALITIES if m in first.features}

    @property
    def num_speakers(self) -> int:
        """The most speakers that one dialogue has, up to `MOST_SPEAKERS`."""
        return min(self.most_speakers, MOST_SPEAKERS)

    @property
    def most_speakers(self) -> int:
        """The most speakers that one dialogue has."""
        return max(len(set(d.speakers)) for d in self.dialogues.values())

    def split(self, name: str) -> list[Dialogue]:
        """The dialogues of a split, in the split's order."""
        return [self.dialogues[i] for i in self.splits[name]]

    def select_modalities(self, names: Sequence[str]) -> Corpus:
        """This corpus with only the named modalities.

        Raises:
            InputError: If a name is no modality, or this corpus has no features of it.
        """
        for name in names:
            if name not in self.dims:
                raise InputError(
                    f"{self.name}: --modalities: no features of modality {name!r}; there are {', '.join(self.dims)}"
                )
        if not names or len(set(names)) != len(names):
            raise InputError(f"--modalities: name each modality once, among {', '.join(self.dims)}")
        return replace(
            self,
            dialogues={
                i: replace(d, features={m: d.features[m] for m in MODALITIES if m in names})
                for i, d in self.dialogues.items()
            },
        )


def session_of(dialogue_id: str) -> str:
    """The recording session an IEMOCAP id names (``Ses03F_impro02`` is of ``Ses03``); elsewhere the empty string."""
    match = re.match(r"Ses\d+", dialogue_id)
    return match.group() if match else ""


def hold_out_validation(corpus: Corpus, share: float, seed: int) -> Corpus:
    """Move a share of the training dialogues into a ``valid`` split, balanced over sessions where ids show them.

    A validation split that the file ships is kept. Test dialogues are never looked at.

    Args:
        corpus: The corpus to split.
        share: Part of the training dialogues to set aside, 0 <= share < 1; 0 sets none aside.
        seed: Decides which.

    Raises:
        InputError: If fewer than one dialogue would be left on either side.
    """
    if corpus.splits.get("valid") or not share:
        return replace(corpus, splits={split: ids for split, ids in corpus.splits.items() if ids})
    train = list(corpus.splits["train"])
    wanted = round(share * len(train))
    if wanted < 1 or wanted >= len(train):
        raise InputError(
            f"{corpus.name}: split 'train': {len(train)} dialogues are too few to set {share:.0%} of them aside "
            "for validation; give more training dialogues or change --valid"
        )
    rng = np.random.default_rng(seed)
    sessions: dict[str, list[str]] = {}
    for dialogue_id in rng.permutation(sorted(train)).tolist():
        sessions.setdefault(session_of(dialogue_id), []).append(dialogue_id)
    # Dealing one dialogue a session in turn keeps every prefix of the queue balanced.
    queues = [sessions[name] for name in sorted(sessions)]
    dealt = [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)]
    valid = set(dealt[:wanted])
    return replace(
        corpus,
        splits={
            **corpus.splits,
            "train": tuple(i for i in train if i not in valid),
            "valid": tuple(i for i in train if i in valid),
        },
    )


def cross_validation(corpus: Corpus, folds: str | int, over: str = "all") -> dict[str, Corpus]:
    """One corpus a fold, with the fold as its test split and the other dialogues as its training split.

    Args:
        corpus: The corpus to split.
        folds: ``sessions``, a fold for each session that IEMOCAP's ids name, or how many folds to deal dialogues to;
            the dealing is the same every time, so that seeds can be compared.
        over: ``all`` dialogues that are in a split, or those of ``train`` alone.

    Returns:
        Name of the fold, such as ``Ses03`` or ``1of5``, to corpus.

    Raises:
        InputError: If the ids name fewer than two sessions, or there are fewer dialogues than folds.
    """
    ids = [i for split, names in corpus.splits.items() if over in ("all", split) for i in names]
    if folds == "sessions":
        sessions = sorted({session_of(i) for i in ids})
        if len(sessions) < 2 or "" in sessions:
            raise InputError(
                f"{corpus.name}: --folds sessions: the dialogue ids do not name two sessions or more, as IEMOCAP's do "
                "(Ses01F_impro01); give a number of folds, such as --folds 5"
            )
        members = {name: [i for i in ids if session_of(i) == name] for name in sessions}
    elif len(ids) < int(folds):
        raise InputError(f"{corpus.name}: --folds {folds}: there are only {len(ids)} dialogues; give fewer folds")
    else:
        dealt = np.array_split(np.random.default_rng(0).permutation(sorted(ids)), int(folds))
        members = {f"{k}of{folds}": part.tolist() for k, part in enumerate(dealt, 1)}
    return {
        name: replace(corpus, splits={"train": tuple(i for i in ids if i not in set(held)), "test": tuple(held)})
        for name, held in members.items()
    }


BLOCK = 2**22  # values that are looked at together: all of IEMOCAP's, but not of a corpus larger than memory


def row_blocks(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The rows of all arrays ``[n, d]`` after one another as float64, in blocks of `BLOCK` values or one row."""
    waiting: list[np.ndarray] = []
    for x in arrays:
        most = max(1, BLOCK // max(1, x.shape[1]))
        while len(x) >= (room := most - sum(map(len, waiting))):
            yield np.concatenate([*waiting, x[:room]]).astype(np.float64)
            x, waiting = x[room:], []
        waiting.append(x)
    if any(map(len, waiting)):
        yield np.concatenate(waiting).astype(np.float64)


# Of the median column's deviation, a few roundings of float32: a column with less is constant for all that is known.
# MiniLM's sentence vectors have two of 1e-33 and one of 1e-8; scaled up, what another machine rounds would be huge.
NEGLIGIBLE = 1e-6

KEPT = 2**25  # bytes of standardised features that are kept; IEMOCAP's published ones are 17 million


@dataclass
class Standardiser:
    """Zero mean and unit variance for every feature, by statistics of the dialogues it was fitted on.

    A column that is constant there, or next to it beside the others (`NEGLIGIBLE`), is centred and not scaled.
    """

    mean: dict[str, np.ndarray] = field(default_factory=dict)
    scale: dict[str, np.ndarray] = field(default_factory=dict)
    _kept: int = field(default=0, repr=False, compare=False)

    @classmethod
    def fit(cls, dialogues: Iterable[Dialogue]) -> Standardiser:
        """Learn mean and scale from every utterance of these dialogues that has the modality.

        Args:
            dialogues: The training ones, and no others.

        Raises:
            InputError: If none of them has a modality.
        """
        dialogues = list(dialogues)
        fitted = cls()
        for modality in dialogues[0].features:
            scaler = StandardScaler()
            for rows in row_blocks([d.features[modality] for d in dialogues]):
                if not np.isnan(rows).all():
                    scaler.partial_fit(rows)  # passes NaN over
            if not hasattr(scaler, "mean_"):
                others = ",".join(m for m in dialogues[0].features if m != modality)
                raise InputError(
                    f"--missing mask: no training utterance has {modality} features, so nothing can be learnt of them; "
                    f"leave them out with --modalities {others or 'LIST'}"
                )
            deviation = np.sqrt(scaler.var_)
            constant = deviation <= NEGLIGIBLE * np.median(deviation)
            fitted.mean[modality], fitted.scale[modality] = scaler.mean_, np.where(constant, 1.0, scaler.scale_)
        return fitted

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its statistics by name, float64, to be saved."""
        return {
            f"{m}.{name}": torch.from_numpy(values[m])
            for name, values in (("mean", self.mean), ("scale", self.scale))
            for m in values
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Standardiser:
        """One with the statistics that `tensors` gave."""
        fitted = cls()
        for name, values in tensors.items():
            modality, kind = name.split(".")
            getattr(fitted, kind)[modality] = values.numpy()
        return fitted

    def __call__(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue with standardised features, float32: the first `KEPT` bytes stay, others are made when asked."""
        return replace(dialogue, features=_Standardised(dialogue.features, self))

    def room_for(self, size: int) -> bool:
        """Whether so many bytes more are kept, which are counted then."""
        self._kept += size
        return self._kept <= KEPT


@dataclass(frozen=True, eq=False)
class _Standardised(Mapping[str, np.ndarray]):
    """Features that are standardised when they are read, so that there is no second copy of a large corpus."""

    raw: Mapping[str, np.ndarray]
    by: Standardiser
    kept: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, modality: str) -> np.ndarray:
        if modality in self.kept:
            return self.kept[modality]
        x = self.raw[modality] - self.by.mean[modality]
        x /= self.by.scale[modality]
        with np.errstate(over="ignore"):  # what comes of it is looked at
            x = x.astype(np.float32)
        if self.by.room_for(x.nbytes):
            self.kept[modality] = x
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


@dataclass(frozen=True)
class Batch:
    """Dialogues padded to one length.

    Attributes:
        ids: The B dialogue ids.
        features: Modality to float ``[B, T, d_modality]``, zero where padded or missing.
        mask: True on real utterances, bool ``[B, T]``.
        speakers: Speaker numbers within the dialogue, long ``[B, T]``, zero where padded.
        labels: Classes, long ``[B, T]``, `IGNORE_LABEL` where padded.
        modality_mask: Modality to True on the real utterances that have it, bool ``[B, T]``; empty where all have all.
        shared: Modality to the shared channels of its fused features ``[B, T, channels]``; empty unless `Dialogue` has.
    """

    ids: tuple[str, ...]
    features: dict[str, torch.Tensor]
    mask: torch.Tensor
    speakers: torch.Tensor
    labels: torch.Tensor
    modality_mask: dict[str, torch.Tensor] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def labelled(self) -> torch.Tensor:
        """True on the real utterances that have a label, bool ``[B, T]``; the others are context alone."""
        return self.mask & (self.labels != IGNORE_LABEL)

    def has(self, modality: str) -> torch.Tensor:
        """True on the real utterances that have a modality, bool ``[B, T]``."""
        return self.modality_mask.get(modality, self.mask)

    def drop_modality(self, shares: Mapping[str, float] | None) -> Batch:
        """This batch with modalities of random utterances missing, drawn by torch's global generator of the CPU.

        An utterance that would lose all it has keeps one, drawn as well.

        Args:
            shares: Modality to the probability that an utterance loses it; those left out lose nothing.
        """
        if not shares:
            return self
        there = torch.stack([self.has(m) for m in self.features])  # [M, B, T]
        draws = torch.rand(there.shape).masked_fill(~there, -1)
        kept = there & (draws >= torch.tensor([shares.get(m, 0.0) for m in self.features]).view(-1, 1, 1))
        kept |= there & ~kept.any(0) & (draws == draws.amax(0))
        present = dict(zip(self.features, kept, strict=True))
        features = {m: x.masked_fill(~present[m].unsqueeze(-1), 0) for m, x in self.features.items()}
        return replace(self, features=features, modality_mask=present)

    def add_noise(self, noise: float) -> Batch:
        """This batch with Gaussian noise added to what is there, drawn by torch's global generator of the CPU.

        Args:
            noise: Its standard deviation, in the units of the features; 0 leaves the batch as it is.
        """
        if not noise:
            return self
        features = {}
        for m, x in self.features.items():
            there, flat = self.has(m).flatten().nonzero().squeeze(1), x.flatten(0, 1)
            noisy = torch.randn(len(there), x.shape[-1]).mul_(noise).add_(flat.index_select(0, there))
            features[m] = torch.zeros_like(flat).index_copy_(0, there, noisy).view_as(x)
        return replace(self, features=features)

    def drop_utterances(self, share: float) -> Batch:
        """This batch with random utterances left out, as if padded, drawn by torch's global generator of the CPU.

        Those that stay keep their places. A dialogue that would lose all of its utterances keeps them.

        Args:
            share: The probability that an utterance is left out.
        """
        if not share:
            return self
        kept = self.mask & (torch.rand(self.mask.shape) >= share)
        kept = torch.where(kept.any(1, keepdim=True), kept, self.mask)
        return replace(
            self,
            features={m: x * kept.unsqueeze(-1).to(x.dtype) for m, x in self.features.items()},
            mask=kept,
            speakers=self.speakers * kept,
            labels=self.labels.masked_fill(~kept, IGNORE_LABEL),
            modality_mask={m: x & kept for m, x in self.modality_mask.items()},
        )

    def augment(
        self, noise: float = 0.0, drop_utterances: float = 0.0, drop_modality: Mapping[str, float] | None = None
    ) -> Batch:
        """A training batch as a step sees it: never the same twice, so that it cannot be learnt by heart.

        Args:
            noise: Standard deviation of what `add_noise` adds.
            drop_utterances: Probability that an utterance is left out.
            drop_modality: Modality to the probability that an utterance loses it.
        """
        return self.drop_utterances(drop_utterances).add_noise(noise).drop_modality(drop_modality)

    def isolated(self) -> Batch:
        """Every real utterance as a dialogue of its own, ``B, T`` becoming ``N, 1``, with nothing to read around it."""
        at = self.mask.nonzero()[:, 0].tolist()
        alone = self.map(lambda x: x[self.mask].unsqueeze(1))
        return replace(alone, ids=tuple(self.ids[i] for i in at), speakers=alone.speakers * 0)

    def to(self, device: torch.device | str) -> Batch:
        """This batch on a device."""
        return self.map(lambda x: x.to(device))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """This batch with all of its tensors changed alike."""
        changed = {
            name: {m: change(x) for m, x in value.items()} if isinstance(value, dict) else change(value)
            for name, value in vars(self).items()
            if name != "ids"
        }
        return replace(self, **changed)


def collate(dialogues: Sequence[Dialogue]) -> Batch:
    """Pad dialogues of any lengths into one `Batch`; rows of NaN are missing."""

    def pad(arrays: Iterable[np.ndarray], value: float = 0) -> torch.Tensor:
        return pad_sequence([torch.from_numpy(a) for a in arrays], batch_first=True, padding_value=value)

    features = {m: pad(d.features[m] for d in dialogues) for m in dialogues[0].features}
    mask = pad(np.ones(len(d), dtype=bool) for d in dialogues)
    missing = {m: x.amax(-1).isnan() for m, x in features.items()}  # faster than to ask every feature
    some = any(lost.any() for lost in missing.values())
    return Batch(
        ids=tuple(d.id for d in dialogues),
        features={m: x.masked_fill(missing[m].unsqueeze(-1), 0) for m, x in features.items()} if some else features,
        mask=mask,
        speakers=pad(d.speaker_index for d in dialogues),
        labels=pad((d.labels for d in dialogues), IGNORE_LABEL),
        modality_mask={m: mask & ~lost for m, lost in missing.items()} if some else {},
        shared={m: pad(d.shared[m] for d in dialogues) for m in dialogues[0].shared},
    )


def batches(dialogues: Sequence[Dialogue], batch_size: int, generator: torch.Generator | None = None) -> DataLoader:
    """A loader of `Batch`; shuffled by `generator` when one is given, else in order."""
    # A loader without a generator takes a seed from torch's global one at every epoch, even when it does not shuffle.
    return DataLoader(
        dialogues,
        batch_size=batch_size,
        shuffle=generator is not None,
        generator=generator or torch.Generator(),
        collate_fn=collate,
    )


# Statistics of labels ----------------------------------------------------------------------------------------------

SESSION_SMOOTHING = 5.0  # utterances of each class that a session is taken to have besides its own


def any_label(dialogues: Iterable[Dialogue]) -> bool:
    """Whether any utterance of these dialogues has a label."""
    return any((d.labels != IGNORE_LABEL).any() for d in dialogues)


def label_counts(dialogues: Sequence[Dialogue], num_classes: int) -> torch.Tensor:
    """How many utterances each class has, ``[C]``."""
    labels = torch.from_numpy(np.concatenate([d.labels for d in dialogues]))
    return torch.bincount(labels[labels != IGNORE_LABEL], minlength=num_classes)


def class_weights(dialogues: Sequence[Dialogue], num_classes: int) -> torch.Tensor:
    """One over each class's share, scaled to a mean of 1 over the utterances; 0 for a class without any, ``[C]``."""
    counts = label_counts(dialogues, num_classes)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)


def session_logit_adjustment(dialogues: Sequence[Dialogue], num_classes: int) -> dict[str, torch.Tensor]:
    """How much likelier each class is in a dialogue's session than in all of them, as logarithms; id to ``[C]``.

    Added to the logits in training, never after it, they account for the sessions' shares of emotions, so that the
    network need not: what it learns stands on the shares of all sessions together (logit adjustment, arXiv 2007.07314,
    with a prior for each session). All 0 where ids name one session, or none.
    """
    sessions: dict[str, list[Dialogue]] = {}
    for d in dialogues:
        sessions.setdefault(session_of(d.id), []).append(d)
    counts = {name: SESSION_SMOOTHING + label_counts(members, num_classes) for name, members in sessions.items()}
    pooled = sum(counts.values())
    shifts = {name: (count / count.sum()).log() - (pooled / pooled.sum()).log() for name, count in counts.items()}
    return {d.id: shifts[session_of(d.id)] for d in dialogues}
