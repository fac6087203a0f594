"""Every setting of a run, in the one place that has its default.

Flags, ``--help``, ``config.json`` and the README's table come from these classes. The standard library alone, so that
flags are checked before torch is imported, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files import InputError, is_printable, read_text

MODALITIES = ("text", "visual", "acoustic")
ALIASES = {"audio": "acoustic", "video": "visual"}  # what else the field calls them
GENERATORS = ("feed-forward", "linear", "transformer")  # the kinds that model.py has
# What another device or folder may need otherwise. The data may have moved: their checksum is compared instead.
FREE_ON_RESUME = {
    "data.features",
    "run.device",
    "run.checkpoint_every",
    "run.tensorboard",
    "run.pictures",
    "run.figures",
}
FIGURE_FORMATS = ("png", "pdf", "svg")
LAST_FLAT_COMMIT = "fcbf372"  # the last whose config.json held flags
RUN_FORMAT = "gan-ffn-run-1"  # says in config.json that a directory is a run


# Kinds of values: how each is read from a flag's text, and checked wherever it comes from -----------------------------


@dataclass(frozen=True)
class Number:
    """A number from low (or above it) up to high."""

    kind: type
    low: float
    high: float
    above: bool = False

    def parse(self, text: str) -> Any:
        """From a flag."""
        try:
            value = self.kind(text)
        except ValueError:
            raise ValueError(f"{text!r:.40} is no {self.kind.__name__}") from None
        return self.check(value, text)

    def check(self, value: Any, shown: str | None = None) -> Any:
        """From JSON, or from a flag, whose text is then shown."""
        if isinstance(value, bool) or not isinstance(value, (int, self.kind)):
            raise ValueError(f"{value!r:.40} is no {self.kind.__name__}")
        inside = self.low < value if self.above else self.low <= value
        if not inside or not value <= self.high or not math.isfinite(value):
            bounds = f"{'above' if self.above else 'at least'} {self.low:g} and at most {self.high:g}"
            raise ValueError(f"{shown or value!s:.40} is out of range; give a number {bounds}")
        return self.kind(value)


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def parse(self, text: str) -> str:
        """From a flag."""
        return self.check(text)

    def check(self, value: Any) -> str:
        """From JSON, or from a flag."""
        if value not in self.words:
            raise ValueError(f"invalid choice: {value!r:.40} (choose from {', '.join(self.words)})")
        return value


@dataclass(frozen=True)
class Switch:
    """On or off."""

    def check(self, value: Any) -> bool:
        """From JSON, or from a flag."""
        if not isinstance(value, bool):
            raise ValueError(f"{value!r:.40} is neither true nor false")
        return value


@dataclass(frozen=True)
class Text:
    """A text, such as the name of a file.

    Args:
        pattern: What it must match.
        wanted: The pattern in words.
    """

    pattern: str = r"[^\x00]+"
    wanted: str = "a name"

    def parse(self, text: str) -> str:
        """From a flag."""
        return self.check(text)

    def check(self, value: Any) -> str:
        """From JSON, or from a flag."""
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value, re.DOTALL):
            raise ValueError(f"{value!r:.40} is not {self.wanted}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{value!r:.40} is not UTF-8") from None
        return value


@dataclass(frozen=True)
class FileName:
    """The name of a file or folder.

    Args:
        new: Whether it is of one that we make: then without line breaks and the like.
    """

    new: bool = False

    def parse(self, text: str) -> str:
        """From a flag; ``~`` stands for the home folder, though no shell saw it."""
        return self.check(os.path.expanduser(text))  # noqa: PTH111 - a Path would lose what "./~" says

    def check(self, value: Any) -> str:
        """From JSON, or from a flag."""
        value = Text(r"[^\x00]{1,4096}", "a name").check(value)
        if self.new and not is_printable(value):
            raise ValueError(f"{value!r:.80} has characters that cannot be shown; choose a plainer name")
        return value


class Words:
    """Several words, with commas between in a flag, each checked on its own and there once."""

    kind = "words"

    def parse(self, text: str) -> tuple[str, ...]:
        """From a flag."""
        return self.check([part.strip() for part in text.split(",")])

    def check(self, value: Any) -> tuple[str, ...]:
        """From JSON, or from a flag."""
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ValueError(f"{value!r:.40} is no list of {self.kind}")
        if len(value) > MOST_NAMES:
            raise ValueError(f"{len(value)} {self.kind}; give {MOST_NAMES} at most")
        words = tuple(map(self.check_word, value))
        if len(set(words)) != len(words):
            raise ValueError(f"{','.join(words):.80} names one of them twice")
        return words

    def check_word(self, word: Any) -> str:
        """One of them, as it is called here."""
        raise NotImplementedError


@dataclass(frozen=True)
class Modalities(Words):
    """Modalities."""

    kind = "modalities"

    def check_word(self, word: Any) -> str:
        """A modality, by its name here."""
        name = ALIASES.get(word, word) if isinstance(word, str) else word
        if name not in MODALITIES:
            raise ValueError(f"unknown modality {name!r:.40}; choose among {', '.join(MODALITIES)}")
        return name


@dataclass(frozen=True)
class Names(Words):
    """Names of classes."""

    kind = "names"

    def check_word(self, word: Any) -> str:
        """A name that can be shown."""
        wanted = "a name of 1 to 100 printable characters"
        if not is_printable(Text(r"[^\x00]{1,100}", wanted).check(word)):
            raise ValueError(f"{word!r:.40} is not {wanted}")
        return word


@dataclass(frozen=True)
class Formats(Words):
    """Formats of pictures."""

    kind = "formats"

    def check_word(self, word: Any) -> str:
        """A format, in small letters."""
        return Choice(FIGURE_FORMATS).check(word.lower() if isinstance(word, str) else word)


@dataclass(frozen=True)
class Probabilities:
    """Modalities, each once and with a probability."""

    def parse(self, text: str) -> dict[str, float]:
        """From a flag: ``visual:0.3,acoustic:0.2``."""
        pairs = [part.strip().partition(":") for part in text.split(",")]
        names = Modalities().check([name for name, _, _ in pairs])
        if not all(colon for _, colon, _ in pairs):
            raise ValueError(f"{text!r:.40}: give a probability after each modality, such as visual:0.3")
        return {name: PROBABILITY.parse(p) for name, (_, _, p) in zip(names, pairs, strict=True)}

    def check(self, value: Any) -> dict[str, float]:
        """From JSON, or from a flag."""
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r:.40} is no dictionary of modalities")
        names = Modalities().check(list(value)) if value else ()
        return dict(zip(names, [PROBABILITY.check(p) for p in value.values()], strict=True))


@dataclass(frozen=True)
class Fold:
    """Which part of a cross-validation a run is: the folds, the dialogues that are folded, the fold's name."""

    def check(self, value: Any) -> tuple[str | int, str, str]:
        """From JSON."""
        if not isinstance(value, Sequence) or len(value) != 3:
            raise ValueError(f"{value!r:.40} is no fold")
        folds, over, name = value
        Choice(("all", "train")).check(over)
        return parse_folds(str(folds)), over, Text(r"[A-Za-z0-9]+", "a fold's name").check(name)


@dataclass(frozen=True)
class Folds:
    """``sessions``, or a number of folds."""

    def parse(self, text: str) -> str | int:
        """From a flag."""
        return parse_folds(text)

    def check(self, value: Any) -> str | int:
        """From JSON."""
        return parse_folds(str(value))


def parse_folds(text: str) -> str | int:
    """``sessions``, or a number of folds."""
    return text if text == "sessions" else Number(int, 2, 10_000).parse(text)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds with commas between, each once."""
    return check_seeds([SEED.parse(part) for part in text.split(",")])


def check_seeds(value: Any) -> tuple[int, ...]:
    """Seeds, each once, from JSON or from a flag."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not 0 < len(value) <= MOST_SEEDS:
        raise ValueError(f"{value!r:.40} is no list of 1 to {MOST_SEEDS} seeds")
    seeds = tuple(SEED.check(seed) for seed in value)
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"{','.join(map(str, seeds))!r:.40} names a seed twice")
    return seeds


MOST_NAMES = 1000  # of classes
MOST_SEEDS = 1000
PROBABILITY = Number(float, 0, 0.99)
SEED = Number(int, 0, 2**32 - 1)
SWITCH = Switch()
DEVICE = Text(r"auto|cpu|cuda(:[0-9]{1,3})?|mps", "auto, cpu, cuda, cuda:1 or mps")


# The settings ---------------------------------------------------------------------------------------------------------


def setting(default: Any, kind: Any, flag: str, help: str, *, metavar: str | None = None, aliases: str = "") -> Any:
    """A field with what ``--help`` says of it.

    Args:
        default: Its value unless given; None where there is none.
        kind: Reads and checks values.
        flag: Its name on the command line; empty where it has none.
        help: A sentence: what it does, its unit, its source.
        metavar: What stands for the value in ``--help``.
        aliases: Other names of the flag, with spaces between.
    """
    about = {"kind": kind, "flag": flag, "help": help, "metavar": metavar, "aliases": aliases.split()}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class DataSettings:
    """The data: which file, and what of it is used."""

    features: str | None = setting(None, FileName(), "--features", "the feature file", metavar="FILE")
    demo: bool = setting(False, SWITCH, "--demo", "a synthetic corpus of IEMOCAP's shape instead of a file")
    text_layers: str = setting(
        "mean",
        Text(r"mean|concat|[0-9]{1,3}", "mean, concat or a layer's number"),
        "--text-layers",
        "where a file has several layers of text features: mean, concat, or the number of one layer",
        metavar="CHOICE",
    )
    target: str = setting(
        "emotion", Choice(("emotion", "sentiment")), "--target", "which labels to learn, where a file has both"
    )
    label_names: tuple[str, ...] | None = setting(
        None,
        Names(),
        "--label-names",
        "names of the classes, with commas between, for files that number them only",
        metavar="LIST",
    )
    modalities: tuple[str, ...] | None = setting(
        None,
        Modalities(),
        "--modalities",
        "which modalities to use, such as text,acoustic (default: all that the file has)",
        metavar="LIST",
    )
    missing: str = setting(
        "refuse",
        Choice(("refuse", "mask")),
        "--missing",
        "utterances that lack a modality (a row of NaN, or none): refuse the file, or mask the modality there",
    )
    valid: float = setting(
        0.0,
        Number(float, 0, 0.9),
        "--valid",
        "share of the training dialogues held out to choose the epoch on; 0 trains on all of them and keeps the last "
        "epoch, where the schedule ends; a file's own validation split is used whatever is said here",
        metavar="SHARE",
    )
    fold: tuple[str | int, str, str] | None = setting(None, Fold(), "", "which of the folds a run is")


@dataclass(frozen=True)
class FusionSettings:
    """Stage 1: adversarial fusion."""

    epochs: int = setting(
        30, Number(int, 0, 100_000), "--GAN-epochs", "epochs of stage 1; 0 leaves stage 1 out", metavar="N"
    )
    lr: float = setting(
        1e-3,
        Number(float, 0, 1e3, above=True),
        "--GAN-lr",
        "peak learning rate of the generators' one-cycle schedule, and that of the discriminators, which stays; with "
        "--GAN-loss reference theirs is half of it",
        metavar="LR",
    )
    weight: float = setting(
        1.0,
        Number(float, 0, 1e6),
        "--GAN-weight",
        "weight of all losses that make the modalities alike, the adversarial one among them, beside reconstruction; "
        "at 0 generators only reconstruct",
        metavar="W",
        aliases="--GAN-adversary",
    )
    loss: str = setting(
        "relativistic",
        Choice(("relativistic", "reference")),
        "--GAN-loss",
        "relativistic: R3GAN's loss (arXiv 2501.05441) beside those that keep to the utterance; reference: binary "
        "cross entropy alone and slow discriminators, as the reference implementation has it",
    )
    generator: str = setting(
        "feed-forward",
        Choice(GENERATORS),
        "--generator",
        "kind of the generators: feed-forward and linear read each utterance alone, transformer reads the dialogue, "
        "as the reference's do",
    )
    channels: int = setting(
        128, Number(int, 10, 16_384), "--fused-channels", "width of the fused features; even", metavar="D"
    )
    dropout: float = setting(0.4, PROBABILITY, "--dropout", "dropout probability, of generators and graph", metavar="P")
    trained_run: str | None = setting(
        None,
        FileName(),
        "--use-trained-GAN",
        "take stage 1, and the standardisation, from that run, whatever --GAN-epochs says",
        metavar="RUN",
    )
    more_epochs: int = setting(
        0,
        Number(int, 0, 100_000),
        "--continue-train-GAN-step",
        "with --use-trained-GAN: train stage 1 that many epochs further first",
        metavar="N",
    )

    @property
    def takes_place(self) -> bool:
        """Whether there is a stage 1, trained here or taken from another run; with one modality there is none."""
        return bool(self.epochs or self.trained_run)


@dataclass(frozen=True)
class ClassifierSettings:
    """Stage 2: graph-based emotion classifier."""

    epochs: int = setting(30, Number(int, 1, 100_000), "--epochs", "epochs of stage 2", metavar="N")
    lr: float = setting(
        1e-3,
        Number(float, 0, 1e3, above=True),
        "--lr",
        "peak learning rate of the one-cycle schedule (arXiv 1708.07120); lower it if the loss is unsteady",
    )
    weight_decay: float = setting(
        1e-2,
        Number(float, 0, 1e3),
        "--weight-decay",
        "decoupled weight decay of both stages (AdamW, arXiv 1711.05101)",
        aliases="--l2",
    )
    window_past: int = setting(
        8,
        Number(int, 0, 10_000),
        "--window-past",
        "how many turns back an utterance has neighbours in the graph",
        metavar="TURNS",
    )
    window_future: int = setting(
        8,
        Number(int, 0, 10_000),
        "--window-future",
        "how many turns ahead; with both windows 0 the graph has no edge and nothing reads a dialogue",
        metavar="TURNS",
    )
    causal: bool = setting(
        False,
        SWITCH,
        "--causal",
        "hear nothing of the dialogue's future: no future window, states that run forward only, each speaker's mean "
        "over the turns so far; such a run can be used live (predict.py --stream)",
    )
    speaker_layers: int = setting(
        2,
        Number(int, 0, 100),
        "--speaker-layers",
        "layers that join each speaker's turns, past and future, for each modality; 0 leaves them out",
        metavar="N",
        aliases="--party-blocks",
    )
    graph_layers: int = setting(
        2,
        Number(int, 0, 100),
        "--graph-layers",
        "relational graph convolutions over the windows (DialogueGCN, arXiv 1908.11540)",
        metavar="N",
        aliases="--convolutions",
    )
    attention: bool = setting(
        False, SWITCH, "--attention", "attention over the whole dialogue on top (DialogueGCN's nodal attention)"
    )
    focal: float = setting(
        0.0,
        Number(float, 0, 100),
        "--focal",
        "exponent of the focal loss (arXiv 1708.02002); 0 is cross entropy; above it, hard utterances weigh more",
        metavar="GAMMA",
    )
    unimodal_loss: float = setting(
        0.0,
        Number(float, 0, 1e3),
        "--unimodal-loss",
        "weight of the loss of what the network says by each modality alone, beside that of all together; for models "
        "that must do without the others later",
        metavar="W",
    )
    session_logit_adjustment: bool = setting(
        True,
        SWITCH,
        "--session-logit-adjustment",
        "account for how often each emotion occurs in a training session, where ids name sessions, so that the "
        "network need not learn it (logit adjustment, arXiv 2007.07314)",
        aliases="--session-shares",
    )
    class_weight: bool = setting(
        False, SWITCH, "--class-weight", "weight the loss of each class by one over its share of the utterances"
    )


@dataclass(frozen=True)
class AugmentationSettings:
    """How training data are changed, anew at every step."""

    noise: float = setting(
        0.5,
        Number(float, 0, 1e6),
        "--noise",
        "standard deviation of Gaussian noise added to training features in stage 2, in standard deviations of the "
        "feature",
        metavar="SD",
    )
    drop_utterances: float = setting(
        0.2,
        PROBABILITY,
        "--drop-utterances",
        "probability that an utterance is left out of its training dialogue",
        metavar="P",
        aliases="--drop-utterance",
    )
    drop_modality: dict[str, float] | None = setting(
        None,
        Probabilities(),
        "--drop-modality",
        "probability that a training utterance loses a modality, such as visual:0.3,acoustic:0.2; for models that "
        "must do without one later",
        metavar="LIST",
    )


@dataclass(frozen=True)
class RunSettings:
    """The run."""

    seed: int = setting(0, SEED, "--seed", "seed of all that is random")
    batch_size: int = setting(16, Number(int, 1, 100_000), "--batch-size", "dialogues a step", metavar="B")
    device: str = setting("auto", DEVICE, "--device", "auto, cpu, cuda, cuda:1, mps")
    deterministic: bool = setting(
        False,
        SWITCH,
        "--deterministic",
        "the same bits every time on a GPU too, at some cost in speed; on the CPU they are anyway",
    )
    report_best_test: bool = setting(
        False,
        SWITCH,
        "--report-best-test",
        "score the test split at every epoch and show the best beside the report, as much of the field does; the "
        "weights that are kept do not depend on it",
    )
    calibrate: str | int | None = setting(
        None,
        Folds(),
        "--calibrate",
        "fit the temperature of the probabilities on the training dialogues, each under a network that has not seen "
        "it: K folds, or one a session, cost as many trainings more (default: on the validation split, if any)",
        metavar="K",
    )
    checkpoint_every: int = setting(
        10, Number(int, 1, 100_000), "--checkpoint-every", "epochs between checkpoints to resume from", metavar="N"
    )
    tensorboard: bool = setting(True, SWITCH, "--tensorboard", "write TensorBoard events")
    pictures: bool = setting(True, SWITCH, "--pictures", "draw the pictures and make the page of a finished run")
    figures: tuple[str, ...] = setting(
        ("png",), Formats(), "--figures", "formats of the pictures: png, pdf, svg (default: png)", metavar="LIST"
    )


@dataclass(frozen=True)
class Settings:
    """All settings of one run."""

    data: DataSettings = DataSettings()
    fusion: FusionSettings = FusionSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    run: RunSettings = RunSettings()

    def replace(self, **changes: Any) -> Settings:
        """These settings with others in place, named as in ``run__seed=1``."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            group, _, one = name.partition("__")
            groups.setdefault(group, {})[one] = value
        return dataclasses.replace(self, **{g: dataclasses.replace(getattr(self, g), **c) for g, c in groups.items()})


def groups() -> dict[str, type]:
    """Name of each group of settings to its class."""
    return {group.name: type(group.default) for group in dataclasses.fields(Settings)}


def flat(settings: Settings) -> dict[str, Any]:
    """Every setting by the name of its group and its own, such as ``run.seed``."""
    return {
        f"{group}.{f.name}": getattr(getattr(settings, group), f.name)
        for group, cls in groups().items()
        for f in dataclasses.fields(cls)
    }


def from_json(content: Any, where: str) -> Settings:
    """Settings from what `dataclasses.asdict` made of them; what is left out has its default.

    Args:
        content: A dictionary of groups, each a dictionary.
        where: The file, for messages.

    Raises:
        InputError: If a group or setting is unknown, or a value is of another type or out of range.
    """
    known = groups()
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: settings: a {type(content).__name__} where a dictionary belongs; correct it")
    read = {}
    for group, values in content.items():
        if group not in known or not isinstance(values, Mapping):
            raise InputError(f"{where}: settings: {group!r:.40} is no group of settings; there are {', '.join(known)}")
        fields = {f.name: f for f in dataclasses.fields(known[group])}
        checked = {}
        for name, value in values.items():
            if name not in fields:
                raise InputError(f"{where}: settings: {group}: {name!r:.40} is no setting; correct or remove it")
            optional = fields[name].default is None and value is None
            try:
                checked[name] = None if optional else fields[name].metadata["kind"].check(value)
            except (ValueError, TypeError) as error:
                raise InputError(f"{where}: settings: {group}: {name}: {error}; correct it") from None
        read[group] = known[group](**checked)
    settings = Settings(**read)
    if problem := contradiction(settings):
        raise InputError(f"{where}: settings: {problem}")
    return settings


def differences(one: Settings, other: Settings) -> list[str]:
    """Names of the settings in which two runs differ, but for those that a run may change when it goes on."""
    values = flat(other)
    return [name for name, value in flat(one).items() if name not in FREE_ON_RESUME and values[name] != value]


def contradiction(settings: Settings, named: Collection[str] = ()) -> str | None:
    """What of the settings excludes each other, in words; None if nothing does.

    Args:
        settings: To be looked at.
        named: Those that flags have named, which nobody wants to go unheeded.
    """
    data, fusion, classifier = settings.data, settings.fusion, settings.classifier
    if data.features and data.demo:
        return "--features and --demo exclude each other; give one"
    for name in ("label_names", "target", "text_layers"):
        if data.demo and f"data.{name}" in named:
            return f"--{name.replace('_', '-')} is for a file: --demo has labels and features of its own; leave it out"
    if fusion.channels % 2:
        return f"--fused-channels {fusion.channels}: past and future share the width evenly; give an even one"
    if fusion.loss == "reference" and not fusion.weight:
        return "--GAN-loss reference has no loss but the game: with --GAN-weight 0 it learns nothing; leave one out"
    if fusion.more_epochs and not fusion.trained_run:
        return "--continue-train-GAN-step needs --use-trained-GAN RUN"
    if classifier.causal and classifier.window_future and "classifier.window_future" in named:
        return "--causal has no future window: leave out --window-future, or --causal"
    if settings.run.calibrate and fusion.trained_run:
        return "--calibrate holds dialogues out that the run of --use-trained-GAN has seen; leave one of them out"
    return None


def from_file(path: Path) -> Settings:
    """Settings from a JSON file of them, or from a run's ``config.json``.

    Raises:
        InputError: If it cannot be read, or holds no settings.
    """
    content = read_json(path, "name a JSON file of settings, such as a run's config.json")
    if isinstance(content, Mapping) and "flags" in content:
        raise InputError(older(path))
    return from_json(content.get("settings", content) if isinstance(content, Mapping) else content, str(path))


def read_run(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a run.

    Raises:
        InputError: If it is not one, or of an older version.
    """
    config = read_json(path, "name the directory of a run")
    if isinstance(config, dict) and "flags" in config:
        raise InputError(older(path))
    if not isinstance(config, dict) or config.get("format") != RUN_FORMAT:
        raise InputError(f"{path}: not of a run of GAN-FFN; name the directory of one")
    if not {"settings", "features", "corpus", "splits"} <= config.keys():
        raise InputError(f"{path}: incomplete; the run directory is damaged")
    return config


def read_json(path: Path, cure: str = "the run has not come so far, or is damaged") -> Any:
    """Read JSON.

    Args:
        path: The file.
        cure: What to say should be done if it cannot be read.

    Raises:
        InputError: If it is not there or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {cure}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid JSON; {cure}") from None


def older(path: Path) -> str:
    """What to say of a run of an older version."""
    return (
        f"{path}: a run of an older version; read it with commit {LAST_FLAT_COMMIT} (git checkout {LAST_FLAT_COMMIT})"
    )
