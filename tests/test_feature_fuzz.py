"""Random damage to valid files: only our own error ever leaves, and time and memory stay within bounds."""

import json
import pickle
import random
import signal
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from attacks import features
from feature_content import make_nine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import feature_files
from dataloader import Corpus
from files import InputError, is_printable

MOST_MEMORY = 2**26  # of files of a few kilobytes
MOST_SECONDS = 20  # a hundred times what any of them takes, since the machine may be busy
FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def late(*_):
    raise TimeoutError(f"not read after {MOST_SECONDS} s")


def held(path):
    """Whether a file is a corpus or one line, soon, in little memory, and with nothing in it that cannot be shown.

    Memory is watched, which takes longer than reading does, where the file is read as far as it can be: what refuses
    it earlier has unpickled the same, and takes no more.
    """
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        looked_at(feature_files.read, path)
        tracemalloc.start()
        looked_at(lambda p: feature_files.read(p, missing="mask", lenient=True), path)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        tracemalloc.stop()


def looked_at(look, path):
    try:
        corpus = look(path)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    assert isinstance(corpus, Corpus)
    for dialogue in corpus.dialogues.values():
        for name in (dialogue.id, *dialogue.speakers, *dialogue.utterances):
            assert is_printable(name) and len(name) < 6000
        "".join(dialogue.sentences).encode()
    assert all(is_printable(name) and 0 < len(name) <= 100 for name in corpus.label_names)


@pytest.fixture
def read(tmp_path):
    """Reads as anything reads: a corpus, or one line."""

    def read(raw, name="features.bin", folder=False):
        path = tmp_path / name
        path.write_bytes(raw)
        held(tmp_path if folder else path)

    return read


@st.composite
def damage(draw, raw):
    """A few bytes changed, taken out, put in, or the end cut off."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["set", "flip", "insert", "delete", "cut", "copy"]))
        if kind == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 9))]
        elif kind == "cut":
            del data[at:]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


SMALL = (*make_nine({"Ses01F_a": 2, "Ses05F_b": 1}, (2, 2, 2))[:7], ["Ses01F_a"], ["Ses05F_b"])
LISTS = tuple({i: [list(map(float, r)) for r in t[i]] for i in t} if k in (3, 4, 5) else t for k, t in enumerate(SMALL))


@FUZZ
@given(data=st.data(), protocol=st.sampled_from([0, 2, 4, 5]), content=st.sampled_from([SMALL, LISTS]))
def test_damaged_pickles(read, data, protocol, content):
    read(data.draw(damage(pickle.dumps(content, protocol))))


@FUZZ
@given(raw=st.binary(max_size=200))
def test_bytes_that_are_no_file(read, raw):
    read(raw)
    read(b"\x80\x04" + raw + b".")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([np.zeros((2, 0)), np.array(1.0), np.array(["a"]), np.zeros((2, 2, 2)), np.float16(1), 1j])
    | st.builds(lambda: np.array([1, None, "a"], dtype=object)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(-3, 3) | st.sampled_from(["Ses01F_a", "train"]), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=6,
)


@FUZZ
@given(
    field=st.integers(0, 8),
    dialogue=st.sampled_from([None, "Ses01F_a", "Ses05F_b"]),
    index=st.integers(0, 2),
    new=ANYTHING,
)
def test_any_value_in_any_place(read, field, dialogue, index, new):
    content = list(SMALL)
    if dialogue is None or field > 6:
        content[field] = new
    else:
        rows = list(content[field][dialogue])
        content[field] = content[field] | {dialogue: new if index == 2 else [*rows[:index], new, *rows[index + 1 :]]}
    read(pickle.dumps(tuple(content)))


@FUZZ
@given(content=st.lists(ANYTHING, min_size=5, max_size=14).map(tuple) | ANYTHING)
def test_any_content_at_all(read, content):
    read(pickle.dumps(content))


@FUZZ
@given(tables=st.lists(st.sampled_from([0, 1, 2, 3, 6, 7]), min_size=6, max_size=14))
def test_fields_in_any_order_and_number(read, tables):
    read(pickle.dumps(tuple(SMALL[k] for k in tables)))


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    folder = tmp_path_factory.mktemp("container")
    (folder / "a.pkl").write_bytes(pickle.dumps(SMALL))
    feature_files.write_container(feature_files.read(folder / "a.pkl"), folder / "a.safetensors")
    return (folder / "a.safetensors").read_bytes()


@FUZZ
@given(data=st.data())
def test_damaged_containers(read, container, data):
    read(data.draw(damage(container)))


@FUZZ
@given(key=st.sampled_from(["dialogues", "speakers", "splits", "label_names", "finite", "sha256"]), new=ANYTHING)
def test_any_value_in_a_containers_metadata(read, container, key, new):
    length = int.from_bytes(container[:8], "little")
    header = json.loads(container[8 : 8 + length])
    about = json.loads(header["__metadata__"]["corpus"])
    try:
        header["__metadata__"]["corpus"] = json.dumps(about | {key: new})
    except (TypeError, ValueError):
        return  # not a value of JSON
    changed = json.dumps(header).encode()
    read(len(changed).to_bytes(8, "little") + changed + container[8 + length :])


@FUZZ
@given(data=st.data())
def test_damaged_npz(read, tmp_path, data):
    np.savez_compressed(tmp_path / "label.npz", whole_corpus={"Ses01F_a_F0": {"emo": 1}, "Ses05F_b_M0": {"emo": 2}})
    (tmp_path / "text").mkdir(exist_ok=True)
    np.save(tmp_path / "text" / "Ses01F_a_F0.npy", np.ones(3))
    raw = (tmp_path / "label.npz").read_bytes()
    read(data.draw(damage(raw)), "label.npz")


@FUZZ
@given(data=st.data())
def test_damaged_json(read, tmp_path, data):
    utterance = {"text": "a", "speaker": "F", "label": "sad", "cls": [1.0, 2.0]}
    raw = json.dumps([[utterance, {**utterance, "label": "happy"}]]).encode()
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}_data_roberta.json.feature").write_bytes(raw)
    read(data.draw(damage(raw)), "dev_data_roberta.json.feature")


IDS = [f"d{k}" for k in range(300)]
ZEROS = [0] * 3000
ROWS = [[1.0] * 3000] * 3000


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (dict.fromkeys(IDS, ZEROS), dict.fromkeys(IDS, ROWS)),  # one list in every dialogue
        (dict.fromkeys(IDS, np.zeros(3000, np.int8)), dict.fromkeys(IDS, np.zeros((3000, 1), np.int8))),
        ({"d0": [0] * 3000, "d1": [1]}, {"d0": ROWS * 20, "d1": ROWS[:1]}),
        ({"d0": [0] * 3000, "d1": [1]}, {"d0": [ROWS] * 3000, "d1": ROWS[:1]}),
        ({"d0": [0], "d1": [10**5000]}, {"d0": [[1.0]], "d1": [[10**5000]]}),
        ({"d0": np.zeros(3000), "d1": np.zeros(3000)}, {"d0": ROWS[0], "d1": ROWS[0]}),
    ],
)
def test_a_small_file_does_not_unfold_into_a_large_one(read, labels, text):
    people = {3000: ["F"] * 3000, 1: ["F"]}
    people = {i: people[len(row)] for i, row in labels.items()}
    ids = list(labels)
    read(pickle.dumps(({}, people, labels, text, {}, {}, people, ids[:1], ids[1:])))


LAYOUTS = (*features.pickles(), *features.folders(), "gan-ffn")
CASES = 40  # of each layout; benchmarks/attack.py tries all


@pytest.fixture(scope="module")
def cases():
    """Every hostile value in every place of every layout, by layout."""
    found = {layout: [] for layout in LAYOUTS}
    for one in features.values():
        found[next(layout for layout in sorted(LAYOUTS, key=len, reverse=True) if one.name.startswith(layout))].append(
            one
        )
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hostile_values_in_every_place(cases, layout):
    assert len(cases[layout]) > 500
    for one in random.Random(layout).sample(cases[layout], CASES):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, one.make(Path(folder))[1])
            try:
                held(path)
            except BaseException as error:
                error.add_note(one.name) if hasattr(error, "add_note") else None
                raise
