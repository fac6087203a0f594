"""Causal networks: nothing ahead is heard, and a turn at a time comes to what the whole dialogue does."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import ran

from benchmarks import predict as benchmark
from dataloader import MOST_SPEAKERS, Standardiser, collate
from experiment.export import PortableNetwork
from experiment.prediction import Member, Model
from experiment.settings import ClassifierSettings, FusionSettings, Settings
from experiment.streaming import LONGEST_LINE, MOST_OPEN, RefusedTurnError, Stream, answer_lines
from experiment.trained import build_network, shape_of
from files import InputError
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}
CORPUS = synthetic_corpus(train=4, test=3, mean_length=20, dims=DIMS)


def model(generator="feed-forward", members=1, **classifier):
    settings = Settings(
        fusion=FusionSettings(channels=16, generator=generator),
        classifier=ClassifierSettings(**{"causal": True, "window_past": 4, **classifier}),
    )
    standardise = Standardiser.fit(CORPUS.split("train"))
    networks = []
    for seed in range(members):
        torch.manual_seed(seed)
        network = build_network(shape_of(CORPUS), settings.fusion, settings.classifier).eval()
        networks.append(Member(f"seed{seed}", network, standardise, None))
    return Model(Path("run"), settings, CORPUS.label_names, DIMS, 2, {}, tuple(networks), "cpu")


def turns(dialogue):
    return [
        {
            "dialogue": dialogue.id,
            "speaker": dialogue.speakers[k],
            "sentence": "",
            "features": {m: x[k].tolist() for m, x in dialogue.features.items() if not np.isnan(x[k]).any()},
        }
        for k in range(len(dialogue))
    ]


def holes(dialogue):
    """Three speakers, and turns that lack one modality or all."""
    features = {m: x.copy() for m, x in dialogue.features.items()}
    features["text"][1::3] = np.nan
    features["visual"][::4] = np.nan
    for x in features.values():
        x[5] = np.nan
    return replace(dialogue, features=features, speakers=tuple(np.resize(["a", "b", "a", "c"], len(dialogue))))


@pytest.mark.parametrize("generator", ["feed-forward", "linear", "transformer"])
@pytest.mark.parametrize("attention", [False, True])
def test_no_answer_changes_when_the_future_is_changed(generator, attention):
    network = model(generator, attention=attention).members[0].network
    batch = collate(CORPUS.split("train"))
    for cut in (1, 5):
        other = {m: torch.cat([x[:, :cut], torch.randn_like(x[:, cut:])], 1) for m, x in batch.features.items()}
        speakers = torch.cat([batch.speakers[:, :cut], 1 - batch.speakers[:, cut:]], 1)
        with torch.no_grad():
            before, after = network(batch), network(replace(batch, features=other, speakers=speakers))
        assert torch.equal(before[:, :cut], after[:, :cut]) and not torch.allclose(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"members": 2},
        {"window_past": 1},
        {"window_past": 0},
        {"speaker_layers": 0},
        {"graph_layers": 0},
        {"window_past": 50},
    ],
)
def test_streaming_comes_to_what_the_whole_dialogue_does(changes):
    one = model(**changes)
    dialogues = [*CORPUS.split("test"), replace(holes(CORPUS.split("train")[0]), id="holes")]
    want = np.split(one.probabilities(dialogues), np.cumsum([len(d) for d in dialogues])[:-1])
    stream = Stream(one, missing="mask")
    queues = [turns(d) for d in dialogues]
    for k in range(max(map(len, queues))):  # dialogues go on at the same time
        for i, queue in enumerate(queues):
            if k < len(queue):
                answer = stream.answer(queue[k])
                assert np.allclose(list(answer["probabilities"].values()), want[i][k], atol=1e-5)
                assert answer["turn"] == k + 1 and answer["speaker"] == queue[k]["speaker"]


def test_state_does_not_grow_with_the_dialogue():
    stream = Stream(model())
    queue = turns(CORPUS.split("test")[0])

    def size():
        state = stream.dialogues[queue[0]["dialogue"]].states[0]
        return len(state.sums), sum(map(len, state.parties.values())), len(state.window)

    for turn in queue:
        stream.answer(turn)
    before = size()
    for turn in queue * 5:
        stream.answer(turn)
    assert size() == before == (6, 12, 4)


def run(lines, **options):
    """Exit status, answers and complaints of the script's loop on lines of bytes."""
    sink = io.StringIO()
    status = answer_lines(Stream(model()), io.BytesIO(b"".join(lines)), sink, **options)
    return status, [json.loads(line) for line in sink.getvalue().splitlines()]


GOOD = turns(CORPUS.split("test")[0])[:3]


def line(**changes):
    return json.dumps({**GOOD[0], **changes}).encode() + b"\n"


def features(**changes):
    return {**GOOD[0]["features"], **changes}


@pytest.mark.parametrize(
    "bad, says",
    [
        (b'{"dialogue": \n', "not valid JSON"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b"3\n", "a number where an object belongs"),
        (line(dialogue=None), "dialogue: missing"),
        (line(dialogue=[1]), "dialogue: a list where a name belongs"),
        (line(dialogue="x" * 501), "more than 500 characters"),
        (line(speaker=None), "speaker: missing"),
        (line(sentence=3), "sentence: a number"),
        (line(features=None), "features: missing"),
        (line(features=[1]), "features: a list where an object belongs"),
        (line(features=features(smell=[1])), "'smell': unknown modality"),
        (line(features=features(text=None)), "text: missing"),
        (line(features=features(text=[1.0] * 7)), "7 numbers, but the run was trained on 8"),
        (line(features=features(text=["1"] * 8)), "no list of numbers"),
        (line(features=features(text=[float("nan")] * 8)), "NaN, infinite or too large"),
        (line(features=features(text=[1e300] * 8)), "NaN, infinite or too large"),
        (line(features=features(text=[10**400] * 8)), "NaN, infinite or too large"),
        (line(sentence="x" * 1_000_000), "longer than"),
        (b"x" * (2 * LONGEST_LINE) + b"\n", "longer than"),
        (line(close=1), "close: neither true nor false"),
        (b'{"dialogue": "never", "close": true}\n', "is not open"),
        (line(dialogue="\x1b[31m\u202e", features=3), "features: a number"),
        (line(features={"\x1b[31m\u202e": [1]}), "unknown modality"),
    ],
)
def test_a_bad_line_is_one_complaint_and_the_stream_goes_on(capsys, bad, says):
    good = [json.dumps(turn).encode() + b"\n" for turn in GOOD]
    status, answers = run([good[0], bad, good[1], good[2]])
    error = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("note:")]
    assert status == 2 and len(error) == 1 and error[0].startswith("line 2: ") and says in error[0]
    assert not set(error[0]) & {"\x1b", "\u202e"} and len(error[0]) < 500
    _, without = run(good)
    assert answers == without  # as if the line had not come
    assert run([bad, good[0]], strict=True) == (2, [])


def test_a_dialogue_that_was_closed_takes_no_turn(capsys):
    close = json.dumps({"dialogue": GOOD[0]["dialogue"], "close": True}).encode() + b"\n"
    status, answers = run([line(), close, line(), line(dialogue="another")])
    assert status == 2 and [a["turn"] for a in answers] == [1, 1, 1] and answers[1]["closed"]
    assert "line 3: dialogue: 'Ses05_synthetic00' was closed" in capsys.readouterr().err


def test_the_end_of_input_in_mid_line(capsys):
    status, answers = run([line(), line()[:-20]])
    assert status == 2 and len(answers) == 1 and "line 2: the input ended in mid-line" in capsys.readouterr().err
    status, answers = run([line(), b"\n", line().strip()])
    assert status == 0 and len(answers) == 2


def test_a_reader_that_has_gone_ends_the_stream_with_one_line(capsys):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    assert answer_lines(Stream(model()), io.BytesIO(line() * 3), Gone()) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("note:")]
    assert error == ["line 1: nobody reads the answers any more; stopped"]


def test_an_answer_comes_before_the_next_line_is_read():
    answers = io.StringIO()

    class Source(io.BytesIO):
        def readline(self, size=-1):
            asked.append(len(answers.getvalue().splitlines()))
            return super().readline(size)

    asked = []
    answer_lines(Stream(model()), Source(line() * 3), answers)
    assert asked == [0, 1, 2, 3]


def test_no_more_dialogues_are_open_than_memory_has_room_for(monkeypatch):
    monkeypatch.setattr("experiment.streaming.MOST_OPEN", 2)
    assert MOST_OPEN == 10_000
    _, answers = run([line(dialogue=str(k)) for k in range(4)])
    assert [a["dialogue"] for a in answers] == ["0", "1"]


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"causal": False}, "--causal --features FILE"),
        ({"attention": True}, "without --attention"),
        ({"generator": "transformer"}, "--generator feed-forward"),
    ],
)
def test_a_run_that_cannot_stream_is_refused_with_the_line_that_trains_one(changes, says):
    with pytest.raises(InputError, match=says) as error:
        Stream(model(**changes))
    assert "train_IEMOCAP.py --causal" in str(error.value)


def test_numbers_too_large_are_refused_without_a_word_of_numpy_s(recwarn):
    turn = turns(CORPUS.split("test")[0])[0]
    turn["features"]["text"] = [3.4e38] * DIMS["text"]
    with pytest.raises(RefusedTurnError, match="numbers so large that nothing comes of them"):
        Stream(model()).answer(turn)
    assert not recwarn.list


def test_speakers_beyond_those_told_apart_are_one_everywhere():
    one = model()
    dialogue = CORPUS.split("train")[0]
    many = replace(dialogue, speakers=tuple(f"s{k % 20}" for k in range(len(dialogue))))
    assert len(set(many.speakers)) > MOST_SPEAKERS
    stream = Stream(one)
    said = [list(stream.answer(turn)["probabilities"].values()) for turn in turns(many)]
    assert np.allclose(said, one.probabilities([many]), atol=2e-6)
    rows = [torch.from_numpy(many.features[m])[None] for m in one.dims]
    numbers = torch.tensor([[int(name[1:]) for name in many.speakers]])
    with torch.no_grad():
        found = PortableNetwork(one).eval()(*rows, torch.ones_like(numbers, dtype=torch.bool), numbers)
    assert np.allclose(found[0], one.probabilities([many]), atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 60, 120])
def test_the_benchmark_s_stream_may_be_short(count):
    rows = dict(benchmark.stream_rows(model(), count))
    assert f"the same by predicting all of {count:,} turns at each" in rows and len(rows) == 4 + (count > 100)
    assert float(rows["the last turn's probabilities, stream and whole, differ by"]) < 1e-4


@pytest.mark.parametrize("flag", ["--utterances=49", "--turns=-3", "--turns=x"])
def test_a_wrong_number_of_the_benchmark_is_a_line(flag, capsys):
    status, _, said = ran(benchmark.main, ["run", flag], capsys)
    assert status == 2 and said.count("\n") == 1 and flag.split("=")[0] in said


def test_a_service_forgets_the_names_it_closed_long_ago(monkeypatch, capsys):
    monkeypatch.setattr("experiment.streaming.MOST_CLOSED", 2)
    closed = [x for d in ("one", "two", "three") for x in (line(dialogue=d), line(dialogue=d, close=True))]
    status, answers = run([*closed, line(dialogue="one"), line(dialogue="two")])
    assert status == 2 and [a["dialogue"] for a in answers if not a.get("closed")] == ["one", "two", "three", "one"]
    assert "line 8: dialogue: 'two' was closed" in capsys.readouterr().err
