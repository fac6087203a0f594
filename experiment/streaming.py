"""A causal run live: turns in, an answer each, at a time and memory that do not grow with the dialogue.

What is kept of a dialogue is a sum and a state for each speaker, and the last turns of the window. `DialogueState.hear`
is the network's forward pass for one turn more; that both come to the same is tested. Shapes use d features.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataloader import MODALITIES, MOST_SPEAKERS
from experiment.prediction import Member, Model
from files import InputError, complain, mute, printable
from model import GANFFN, FusedFeatureGenerator, LinearGenerator, SpeakerLayer

LONGEST_LINE = 2**19  # bytes; 25,000 numbers of 20 digits
LONGEST_NAME = 500  # characters of a dialogue's or a speaker's name
MOST_OPEN = 10_000  # dialogues
MOST_CLOSED = 10_000  # dialogues whose late turns are refused; all of them would fill a service's memory
MOST_NAMED = 1_000  # speakers of a dialogue


class RefusedTurnError(ValueError):
    """A turn that cannot be answered; the message names the field and the cure."""


# The network, a turn at a time ----------------------------------------------------------------------------------------


@dataclass
class DialogueState:
    """All that one network remembers of a dialogue.

    Attributes:
        sums: (modality, speaker) to the sum of that speaker's features so far and their number.
        parties: (modality, layer) to the states of the speakers, each ``[d]``.
        window: The last turns: their speaker, and what each graph convolution read of them, ``[layers, d]``.
    """

    sums: dict[tuple[str, int], tuple[Tensor, int]] = field(default_factory=dict)
    parties: dict[tuple[str, int], dict[int, Tensor]] = field(default_factory=dict)
    window: deque[tuple[int, Tensor]] = field(default_factory=deque)

    def hear(self, network: GANFFN, features: Mapping[str, Tensor], speaker: int) -> tuple[Tensor, Callable[[], None]]:
        """Logits ``[C]`` of the next turn.

        Args:
            network: A causal one.
            features: Standardised, ``[d]`` each; without what the turn lacks.
            speaker: Their number by first turn.

        Returns:
            The logits, and what makes the turn part of the state. Until that is called nothing has changed.
        """
        alone = not network.edges  # each utterance is a dialogue of its own
        before = DialogueState() if alone else self
        after: list[Callable[[], None]] = []
        heard = []
        for m in network.fusion.generators:
            if m in features:
                x = before._generate(network.fusion.generators[m], m, features[m], speaker, after)
                if m in network.speaker_encoders:
                    for k, layer in enumerate(network.speaker_encoders[m].blocks):
                        x = before._speaker_layer(layer, (m, k), x, speaker, after)
                    x = network.speaker_encoders[m].norm(x)
                heard.append(x)
        count = len(network.fusion.generators)
        width = network.fusion.fused_channels
        device = network.classifier.classify[-1].weight.device
        node = torch.stack(heard).sum(0) * (count / len(heard)) if heard else torch.zeros(width, device=device)
        views = [node]
        if network.classifier.convolutions:
            views.append(before._convolve(network, node, speaker, after))
        logits = network.classifier.classify(torch.cat(views))
        return logits, (lambda: None) if alone else (lambda: [change() for change in after])

    def _generate(
        self, generator: FusedFeatureGenerator, m: str, x: Tensor, speaker: int, after: list[Callable[[], None]]
    ) -> Tensor:
        """What `FusedFeatureGenerator` makes of a turn: its features beside the same less their speaker's mean."""
        total, count = self.sums.get((m, speaker), (torch.zeros(len(x), dtype=torch.float64), 0))
        total, count = total + x.cpu(), count + 1  # there: Apple's GPUs have no float64
        after.append(lambda: self.sums.__setitem__((m, speaker), (total, count)))
        relative = x - (total / count).to(x)
        turn = torch.cat([x, relative]).unsqueeze(0)
        encoded = generator.encode(generator.embed(turn), torch.ones(1, 1, dtype=torch.bool, device=x.device))
        return generator.fuse(encoded, generator.own[0](turn)).squeeze(0)

    def _speaker_layer(
        self, layer: SpeakerLayer, at: tuple[str, int], x: Tensor, speaker: int, after: list[Callable[[], None]]
    ) -> Tensor:
        """What `SpeakerLayer` makes of a turn: its speaker's new state beside the sum of the others'."""
        states = self.parties.setdefault(at, {})
        normed = layer.norm_states(x)
        gate, candidate = torch.sigmoid(layer.states.gate(normed)), layer.states.candidate(normed)
        own = gate * candidate
        if speaker in states:
            own = own + (1 - gate) * states[speaker]
        others = [state for party, state in states.items() if party != speaker]
        other = torch.stack(others).sum(0) if others else torch.zeros_like(own)
        after.append(lambda: states.__setitem__(speaker, own))
        x = x + layer.read(torch.cat([own, other]))
        return x + layer.feed_forward(x)

    def _convolve(self, network: GANFFN, node: Tensor, speaker: int, after: list[Callable[[], None]]) -> Tensor:
        """What the graph convolutions say of a turn: their sources are the last turns of the window."""
        classifier = network.classifier
        speakers = classifier.num_speakers
        target = min(speaker, speakers - 1)
        sources: dict[int, list[int]] = {}
        for place, (party, _) in enumerate(self.window):
            sources.setdefault(min(party, speakers - 1), []).append(place)
        past = torch.stack([inputs for _, inputs in self.window]) if self.window else None  # [W, layers, d]
        heard, inputs = node, []
        for k, (convolution, norm) in enumerate(zip(classifier.convolutions, classifier.norms, strict=True)):
            inputs.append(heard)
            total = heard @ convolution.root + convolution.bias
            for source, places in sources.items():
                weight = convolution.weight[2 * (source * speakers + target)]
                total = total + past[places, k].mean(0) @ weight
            heard = heard + F.gelu(norm(total))
        turn = (speaker, torch.stack(inputs))

        def remember() -> None:
            self.window.append(turn)
            while len(self.window) > classifier.window[0]:
                self.window.popleft()

        after.append(remember)
        return heard


# Dialogues ------------------------------------------------------------------------------------------------------------


@dataclass
class OpenDialogue:
    """A dialogue that goes on.

    Attributes:
        speakers: Name to number, by first turn.
        turns: How many there were.
        states: What each network remembers.
    """

    speakers: dict[str, int]
    turns: int
    states: list[DialogueState]


class Stream:
    """Dialogues that are under way, and what a causal run says of each turn as it comes.

    Args:
        model: Of a run that was trained with ``--causal``.
        missing: ``refuse`` turns that lack a modality, or ``mask`` it.

    Raises:
        InputError: If the run is not causal, or reads all of what was said at each turn.
    """

    def __init__(self, model: Model, missing: str = "refuse"):
        classifier, fusion = model.settings.classifier, model.settings.fusion
        train = "train one with: python train_IEMOCAP.py --causal --features FILE --out RUN"
        if not classifier.causal:
            raise InputError(f"{model.directory}: --stream: the run reads what comes after an utterance; {train}")
        for network in (member.network for member in model.members):
            for generator in network.fusion.generators.values():
                if type(generator) not in (FusedFeatureGenerator, LinearGenerator):
                    raise InputError(
                        f"{model.directory}: --stream: --generator {fusion.generator} reads all of a dialogue at each "
                        f"turn, which takes ever longer; {train}, with --generator feed-forward"
                    )
            if network.classifier.attention is not None:
                raise InputError(
                    f"{model.directory}: --stream: --attention reads all of a dialogue at each turn, which takes ever "
                    f"longer; {train}, without --attention"
                )
        self.model, self.missing = model, missing
        self.dialogues: dict[str, OpenDialogue] = {}
        self.closed: OrderedDict[str, None] = OrderedDict()  # the last of them

    def answer(self, turn: Any) -> dict[str, Any]:
        """What the model says of a turn, by what was said before it in its dialogue.

        Args:
            turn: ``dialogue``, ``speaker``, ``features`` (modality to ``[d]`` numbers) and maybe ``sentence``; or
                ``dialogue`` and ``close: true``, which forgets the dialogue.

        Returns:
            ``dialogue``, ``turn`` (from 1), ``speaker``, ``emotion`` and ``probabilities`` by name; of a close
            ``dialogue``, ``turn`` (the last) and ``closed``.

        Raises:
            RefusedTurnError: If the turn is not such; all is then as if it had not come.
        """
        if not isinstance(turn, Mapping):
            raise RefusedTurnError(f"a {kind_of(turn)} where an object belongs; give dialogue, speaker and features")
        name = self._name(turn, "dialogue")
        if name in self.closed:
            raise RefusedTurnError(f"dialogue: {name!r:.80} was closed; give the new one another name")
        close = turn.get("close", False)
        if not isinstance(close, bool):
            raise RefusedTurnError("close: neither true nor false; leave it out of turns")
        if close:
            if name not in self.dialogues:
                raise RefusedTurnError(f"dialogue: {name!r:.80} is not open; close what has had a turn")
            self.closed[name] = None
            if len(self.closed) > MOST_CLOSED:
                self.closed.popitem(last=False)
            return {"dialogue": name, "turn": self.dialogues.pop(name).turns, "closed": True}
        speaker = self._name(turn, "speaker")
        if not isinstance(turn.get("sentence", ""), str | None):
            raise RefusedTurnError(f"sentence: a {kind_of(turn['sentence'])} where text belongs; give a string")
        rows = self._rows(turn)
        dialogue = self.dialogues.get(name)
        if dialogue is None:
            if len(self.dialogues) >= MOST_OPEN:
                raise RefusedTurnError(
                    f'dialogue: {MOST_OPEN:,} are open; close those that have ended, with {{"dialogue": ..., "close": '
                    "true}"
                )
            dialogue = OpenDialogue({}, 0, [DialogueState() for _ in self.model.members])
        number = dialogue.speakers.get(speaker, len(dialogue.speakers))
        if number >= MOST_NAMED:
            raise RefusedTurnError(f"speaker: more than {MOST_NAMED:,} in one dialogue; name each by one name")
        probabilities, changes = self._hear(dialogue, rows, min(number, MOST_SPEAKERS - 1))
        for change in changes:
            change()
        dialogue.speakers[speaker] = number
        dialogue.turns += 1
        self.dialogues[name] = dialogue
        names = self.model.label_names
        return {
            "dialogue": name,
            "turn": dialogue.turns,
            "speaker": speaker,
            "emotion": names[int(probabilities.argmax())],
            "probabilities": {label: round(float(p), 6) for label, p in zip(names, probabilities, strict=True)},
        }

    @torch.no_grad()
    def _hear(
        self, dialogue: OpenDialogue, rows: Mapping[str, np.ndarray], speaker: int
    ) -> tuple[np.ndarray, list[Callable[[], None]]]:
        """Probabilities ``[C]``, the mean over the networks, and what makes the turn part of the dialogue."""
        each, changes = [], []
        for member, state in zip(self.model.members, dialogue.states, strict=True):
            features = {m: self._standardised(member, m, x) for m, x in rows.items()}
            logits, change = state.hear(member.network, features, speaker)
            logits = logits.cpu().double() / (member.calibration.temperature if member.calibration else 1)
            each.append(logits.softmax(-1).numpy())
            changes.append(change)
        probabilities = np.mean(each, 0)
        if not np.isfinite(probabilities).all():
            raise RefusedTurnError("features: numbers so large that nothing comes of them; give the encoder's own")
        return probabilities, changes

    def _standardised(self, member: Member, m: str, row: np.ndarray) -> Tensor:
        """A row ``[d]`` by the statistics of the training dialogues."""
        # As a file's rows are, float32 first.
        x = (row - member.standardise.mean[m]) / member.standardise.scale[m]
        with np.errstate(over="ignore"):  # what comes of it is looked at
            x = x.astype(np.float32)
        return torch.from_numpy(x).to(self.model.device)

    def _name(self, turn: Mapping[str, Any], field: str) -> str:
        """The name in a field, a string or a whole number."""
        value = turn.get(field)
        if value is None:
            raise RefusedTurnError(f"{field}: missing; name it in every turn")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RefusedTurnError(f"{field}: a {kind_of(value)} where a name belongs; give a string")
        if len(name := str(value)) > LONGEST_NAME:
            raise RefusedTurnError(f"{field}: a name of more than {LONGEST_NAME} characters; give a shorter one")
        return name

    def _rows(self, turn: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The features of a turn, float32 ``[d]``, by modality."""
        given, dims = turn.get("features"), self.model.dims
        if given is None:
            raise RefusedTurnError("features: missing; give numbers by modality")
        if not isinstance(given, Mapping):
            raise RefusedTurnError(f"features: a {kind_of(given)} where an object belongs; give numbers by modality")
        for m in given:
            if m not in dims:
                known = "the run does not use it" if m in MODALITIES else "unknown modality"
                raise RefusedTurnError(f"features: {m!r:.40}: {known}; the run has {', '.join(dims)}")
        rows = {}
        for m, width in dims.items():
            values = given.get(m)
            if values is None:
                if self.missing == "refuse":
                    raise RefusedTurnError(f"features: {m}: missing; give it, or start with --missing mask")
                continue
            if not isinstance(values, list) or not all(type(x) in (int, float) for x in values):
                raise RefusedTurnError(f"features: {m}: no list of numbers; give {width} of them")
            if len(values) != width:
                raise RefusedTurnError(
                    f"features: {m}: {len(values)} numbers, but the run was trained on {width}; use its encoder"
                )
            try:
                with np.errstate(over="ignore"):
                    rows[m] = np.array(values, np.float64).astype(np.float32)
            except OverflowError:
                rows[m] = np.full(width, np.inf)
            if not np.isfinite(rows[m]).all():
                raise RefusedTurnError(f"features: {m}: NaN, infinite or too large; repair it or leave the turn out")
        return rows


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "object", list: "list", str: "string", bool: "truth value", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


# Lines ----------------------------------------------------------------------------------------------------------------


def answer_lines(stream: Stream, source: BinaryIO, sink: TextIO, *, strict: bool = False) -> int:
    """Answer JSON lines one by one, each before the next is read; say on standard error what is refused.

    Args:
        stream: The dialogues.
        source: A turn a line, UTF-8.
        sink: An answer a line, ASCII.
        strict: Whether the first turn that is refused ends it.

    Returns:
        The exit status: 0, or 2 if any turn was refused.
    """
    if not stream.model.calibrated and not stream.model.unfinished:
        complain("note: the probabilities are uncalibrated; train with --valid 0.1 or --calibrate 5")
    refused, number = 0, 0
    while line := source.readline(LONGEST_LINE + 1):
        number += 1
        try:
            if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := source.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                raise RefusedTurnError(f"longer than {LONGEST_LINE:,} bytes; give one turn a line")
            if not line.strip():
                continue
            answer = json.dumps(stream.answer(parse(line)))
        except RefusedTurnError as error:
            refused += 1
            complain(f"line {number}: {printable(str(error), 400)}")
            if strict:
                return 2
            continue
        try:
            print(answer, file=sink, flush=True)
        except (OSError, ValueError):
            complain(f"line {number}: nobody reads the answers any more; stopped")
            mute(sys.stdout)
            return 2
    return 2 if refused else 0


def parse(line: bytes) -> Any:
    """A line of JSON.

    Raises:
        RefusedTurnError: If it is none.
    """
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = f"not valid JSON ({getattr(error, 'msg', 'a number too long')})"
    if not line.endswith(b"\n"):
        raise RefusedTurnError(f"the input ended in mid-line: {problem}; end every turn with a line break")
    raise RefusedTurnError(f"{problem}; give one object a line")
