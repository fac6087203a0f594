"""Inspect, convert and join, as called from the command line, and the container of layout 14."""

import contextlib
import hashlib
import json
import os
import pickle
import re
import resource
import runpy
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from attacks.driver import Attack, judge
from attacks.features import ABOUT, write_ours
from feature_content import LENGTHS, make_nine, refusal
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.numpy import load_file

import dataloader
import feature_files
import train_IEMOCAP
from dataloader import IEMOCAP_LABELS
from feature_files import download, inspection
from feature_files.checks import LAYOUTS
from files import InputError

IDS = list(LENGTHS)
ROOT = Path(feature_files.__file__).parent.parent


def inspect(path, capsys):
    assert feature_files.main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def probed(betrayed=0.0, honest=0.0, n=60):
    """Twelve train and six test dialogues whose text tells the label, by a shift on train and by one on test."""
    rng = np.random.default_rng(2)
    nine = make_nine({f"Ses0{k % 4 + 1}F_{k:02}": n for k in range(18)}, classes=2)
    nine[7], nine[8] = list(nine[2])[:12], list(nine[2])[12:]
    for i in nine[2]:
        shift = betrayed if i in nine[7] else honest
        nine[3][i] = rng.normal(size=(n, 5)) + shift * np.array(nine[2][i])[:, None]
    return nine


def test_inspect_says_what_a_file_is(save, capsys):
    nine = make_nine()
    path = save(tuple(nine))
    report = inspect(path, capsys)
    assert (report["layout"], report["layout_name"], report["provenance"]) == (2, "nine-tuple", {})
    assert report["modalities"] == {"text": 5, "visual": 3, "acoustic": 4}
    assert report["dialogues"] == {"train": 2, "test": 1}
    assert report["utterances"] == {"train": 4, "test": 4}
    assert (report["classes"], report["label_names"], report["speakers"]) == (6, list(IEMOCAP_LABELS), 2)
    # n utterances of a dialogue are labelled n, n + 1, and so on
    assert report["class_counts"] == {"train": [0, 1, 0, 1, 1, 1], "test": [1, 1, 0, 0, 1, 1]}
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    raw = path.read_bytes()
    assert report["git_blob"] == hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
    assert report["known_as"] == ""
    assert [line for line in report["warnings"] if "no split" in line and IDS[3] in line]
    values = np.concatenate([nine[4][i] for i in nine[4]])
    assert report["ranges"]["acoustic"]["max"] == pytest.approx(values.max())
    assert feature_files.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for piece in ("2, nine-tuple", "acoustic 4", "frustrated", report["sha256"], "warning"):
        assert piece in shown


def test_inspect_names_a_known_file(save, capsys, monkeypatch, tmp_path):
    path = save(tuple(make_nine()))
    known = tmp_path / "known.json"
    entry = {"name": "mine", "file": "x.pkl", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    known.write_text(json.dumps([entry]))
    monkeypatch.setattr(download.known_files, "__defaults__", (known,))
    assert inspect(path, capsys)["known_as"] == "mine"


def test_inspect_warns_of_what_read_refuses(save, capsys):
    nine = make_nine()
    nine[4][IDS[0]][1, 2] = np.nan
    nine[8] = [IDS[2], IDS[0], "Ses09F_x"]  # a leak, and one that is not there
    nine[1] = nine[1] | {IDS[3]: ["M"]}  # unequal lengths
    nine[3] = {i: np.concatenate([rows[:, :4], np.ones((len(rows), 1))], 1) for i, rows in nine[3].items()}
    path = save(nine)
    warnings = "\n".join(inspect(path, capsys)["warnings"])
    for piece in (
        "acoustic: dialogue 'Ses01F_impro01': 1 values are NaN",
        "test: dialogue 'Ses01F_impro01': also in split train",
        "test: dialogue 'Ses09F_x': no such dialogue",
        "speakers: dialogue 'Ses03F_left_out': 1 for 2 labels",
        "text: 1 of 5 columns are constant",
        "acoustic: 1 of 4 columns hold NaN",
    ):
        assert piece in warnings
    refusal(path)


def test_inspect_does_not_warn_of_zeros_up_to_the_width_of_the_widest_modality(save, capsys):
    nine = make_nine(dims=(6, 6, 6))
    for i in IDS:
        nine[3][i][:, 2:] = 0  # as --export-fused fills up a narrow modality
        nine[4][i][:, 1] = nine[4][i][:, 5] = 7
        nine[5][i][:] = 0
    warnings = inspect(save(nine), capsys)["warnings"]
    assert [line for line in warnings if "constant" in line] == [
        "visual: 6 of 6 columns are constant in train",
        "acoustic: 2 of 6 columns are constant in train",
    ]


def test_inspect_warns_of_duplicates(save, capsys):
    nine = make_nine()
    for k in (3, 4, 5):
        nine[k][IDS[2]][0] = nine[k][IDS[0]][1]
    nine[0][IDS[2]][0] = nine[0][IDS[0]][1]
    warnings = "\n".join(inspect(save(nine), capsys)["warnings"])
    assert "1 utterances have the features of another one; 1 are so shared by train and test" in warnings
    assert "1 utterance ids are there more than once, such as 'Ses01F_impro01_F001'" in warnings


def test_inspect_warns_of_features_made_with_labels(save, capsys):
    def lines(nine):
        return [line for line in inspect(save(nine), capsys)["warnings"] if line.startswith("text")]

    assert lines(probed()) == []
    assert lines(probed(betrayed=0.5, honest=0.5)) == []
    assert "made with train's labels" in lines(probed(betrayed=2.0, honest=0.3))[0]
    assert "labels of both splits" in lines(probed(betrayed=5.0, honest=5.0))[0]


@pytest.mark.parametrize("case", ["usual", "tiny", "nan", "one modality", "many classes", "constant"])
def test_inspect_draws_a_picture(save, tmp_path, case):
    nine = make_nine({"a": 1, "b": 1}) if case == "tiny" else probed(n=5)
    if case == "tiny":
        nine[7], nine[8] = ["a"], ["b"]
    if case == "nan":
        nine[3][next(iter(nine[3]))][:] = np.nan
    if case == "many classes":
        nine = make_nine({"a": 60, "b": 60}, classes=60)
        nine[7], nine[8] = ["a"], ["b"]
    if case == "constant":
        nine[3] = {i: np.ones_like(rows) for i, rows in nine[3].items()}
    if case == "one modality":
        nine[4] = nine[5] = {}
    picture = tmp_path / "a.png"
    assert feature_files.main(["inspect", str(save(nine)), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_numbers_of_dialogues_are_whole_in_the_picture(save, tmp_path, monkeypatch):
    ticks, write = {}, Figure.savefig

    def look(figure, *given, **flags):
        write(figure, *given, **flags)
        ticks.update((axis.get_title(), axis.get_yticks()) for axis in figure.axes)

    monkeypatch.setattr(Figure, "savefig", look)
    feature_files.main(["inspect", str(save(make_nine({"a": 3, "b": 5}))), "--plot", str(tmp_path / "a.png")])
    assert all(float(tick).is_integer() for tick in ticks["Length of dialogues"])


def same(a, b):
    assert (a.splits, a.label_names, list(a.dialogues)) == (b.splits, b.label_names, list(b.dialogues))
    for i, x in a.dialogues.items():
        y = b.dialogues[i]
        assert (x.speakers, x.sentences, x.utterances) == (y.speakers, y.sentences, y.utterances)
        np.testing.assert_array_equal(x.labels, y.labels)
        assert list(x.features) == list(y.features)
        for modality in x.features:
            np.testing.assert_array_equal(x.features[modality], y.features[modality])
            assert y.features[modality].dtype == np.float32


def test_convert_loses_nothing_and_goes_back(save, tmp_path, capsys):
    nine = make_nine()
    nine[6][IDS[0]][0] = 'Olé "你"\n\u2028'
    path, ours, back = save(nine), tmp_path / "a.safetensors", tmp_path / "b.PKL"
    assert feature_files.main(["convert", str(path), str(ours)]) == 0
    assert feature_files.main(["convert", str(ours), str(back)]) == 0
    before = feature_files.read(path)
    same(before, feature_files.read(ours))
    same(before, feature_files.read(back))
    capsys.readouterr()
    assert inspect(back, capsys)["layout"] == 2
    report = inspect(ours, capsys)
    assert report["layout"] == 14 and report["sha256"] == hashlib.sha256(ours.read_bytes()).hexdigest()
    assert report["class_counts"] == inspect(path, capsys)["class_counts"]


def test_convert_keeps_choices_splits_and_provenance(save, tmp_path, capsys):
    meld = make_nine({0: 3, 1: 1, 2: 4}, classes=7)
    sentiment = {i: [k % 3 for k in range(len(row))] for i, row in meld[2].items()}
    content = [meld[1], meld[2], sentiment, *(meld[3:4] * 4), meld[6], [0], [1], [2]]
    path, ours = save(content), tmp_path / "a.safetensors"
    flags = ["--text-layers", "concat", "--target", "sentiment"]
    assert feature_files.main(["convert", str(path), str(ours), *flags]) == 0
    corpus = feature_files.read(ours)
    assert corpus.dims == {"text": 20}
    assert corpus.splits == {"train": ("0",), "valid": ("2",), "test": ("1",)}
    assert corpus.label_names == ("neutral", "positive", "negative")
    with safe_open(ours, "numpy") as opened:
        about = json.loads(opened.metadata()["corpus"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["provenance"]["from"] == [{"file": "features.pkl", "sha256": digest}]
    assert about["provenance"]["text_layers"] == "concat"
    assert feature_files.provenance(ours) == about["provenance"] and feature_files.provenance(path) == {}
    assert feature_files.inspect(ours)["provenance"] == about["provenance"]
    assert feature_files.main(["inspect", str(ours)]) == 0
    assert digest in capsys.readouterr().out


def test_inspect_looks_past_what_may_be_missing(save, capsys):
    nine = make_nine()
    nine[4][IDS[0]][1] = np.nan
    del nine[5][IDS[1]]
    path = str(save(nine))
    assert "no features" in "".join(inspect(path, capsys)["warnings"])
    assert feature_files.main(["inspect", path, "--json", "--missing", "mask"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["utterances"] == {"train": 4, "test": 4}
    assert "acoustic: 1 of 4 utterances lack it in train" in report["warnings"]
    assert not any("--missing" in line for line in report["warnings"])


@pytest.mark.parametrize("beside", [None, ".labels.txt", ".labels.json"])
def test_names_of_classes_are_given(save, tmp_path, capsys, beside):
    nine = make_nine({"a": 3, "b": 2}, classes=3)
    nine[7], nine[8] = ["a"], ["b"]
    path, ours, names = save(nine), tmp_path / "a.safetensors", ["calm", "cross", "très gai"]
    flags = [] if beside else ["--label-names", "calm, cross,très gai"]
    if beside:
        text = json.dumps(names) if beside.endswith("json") else "\n".join(names) + "\n"
        path.with_name(path.name + beside).write_text(text, encoding="utf-8")
    assert feature_files.main(["inspect", str(path), "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["label_names"] == names
    assert feature_files.main(["convert", str(path), str(ours), *flags]) == 0
    assert feature_files.read(ours).label_names == tuple(names)
    # What is asked for goes before what lies beside.
    assert feature_files.read(path, label_names=["x", "y", "z"]).label_names == ("x", "y", "z")


@pytest.mark.parametrize("wrong", ["a,b", "a,b,c,d", "", "a,,c", "a,a,c"])
def test_wrong_names_of_classes_are_one_line(save, capsys, wrong):
    nine = make_nine({"a": 3, "b": 2}, classes=3)
    nine[7], nine[8] = ["a"], ["b"]
    path = save(nine)
    assert feature_files.main(["inspect", str(path), "--label-names", wrong]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and str(path) in shown and "--label-names" in shown
    path.with_name("features.pkl.labels.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"labels\.json"):
        feature_files.read(path)


def test_a_known_set_may_be_named_by_all_its_classes_or_those_there_are(save):
    path = save(make_nine(classes=4))  # of IEMOCAP's ids
    for count in (4, 6):
        assert feature_files.read(path, label_names=list("abcdef"[:count])).num_classes == count
    assert "5 names for 4 classes" in refusal(path, label_names="a,b,c,d,e")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from feature_files import commands as m; m.build_parser(); "
        "assert not {'numpy', 'torch', 'matplotlib', 'sklearn'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_inspect_looks_at_a_large_file_in_blocks(save, tmp_path, monkeypatch):
    ours = tmp_path / "a.safetensors"
    feature_files.write_container(
        feature_files.read(save(make_nine({f"d{k}": 20 for k in range(100)}, (3000, 4, 5)))), ours
    )
    monkeypatch.setattr(dataloader, "BLOCK", 2**16)
    monkeypatch.setattr(inspection, "PROBED", (0, 0))
    tracemalloc.start()
    report = feature_files.inspect(ours)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < ours.stat().st_size / 2 > 10e6
    text = np.concatenate([d.features["text"] for d in feature_files.read(ours).dialogues.values()])
    assert report["ranges"]["text"] == pytest.approx(
        {"min": text.min(), "max": text.max(), "mean": text.mean(dtype=float), "sd": text.std(dtype=float)}
    )


def test_container_is_mapped_and_not_loaded(save, tmp_path):
    ours = tmp_path / "a.safetensors"
    feature_files.write_container(feature_files.read(save(make_nine())), ours)
    corpus = feature_files.read(ours, verify=False)
    rows = corpus.dialogues[IDS[0]].features["text"]
    base = rows
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and rows.flags.writeable
    before = ours.read_bytes()
    rows[:] = 7  # of the copy in memory only
    assert ours.read_bytes() == before
    # Features that are not asked for may be anything: they are not looked at.
    at = before.index(load_file(ours)["visual"].tobytes())
    ours.write_bytes(before[:at] + b"\xff" * 12 + before[at + 12 :])
    trusting = feature_files.read(ours, verify=False)
    same(corpus.select_modalities(["acoustic"]), trusting.select_modalities(["acoustic"]))
    assert "visual: its checksum" in refusal(ours)  # but unless one asks for that, they are


def test_a_container_whose_data_are_short_is_refused_and_never_mapped(save, tmp_path):
    """Reading what lies behind a file's end would kill the process with SIGBUS."""
    whole = tmp_path / "whole"
    feature_files.write_container(feature_files.read(save(make_nine({"a": 2000, "b": 900, "c": 100}))), whole)
    raw = whole.read_bytes()
    for length in (*range(len(raw) - 1, len(raw) - 12_000, -4000), len(raw) // 2, 8 + raw.index(b"}")):

        def make(folder, length=length):
            (folder / "a").write_bytes(raw[:length])
            return ["inspect", "a"]

        folder = tmp_path / str(length)
        folder.mkdir()
        assert judge(Attack("", "", make, refuse=True, seconds=60), folder) == ""


def test_a_container_that_is_cut_while_it_is_opened(save, tmp_path, monkeypatch):
    ours = tmp_path / "a.safetensors"
    feature_files.write_container(feature_files.read(save(make_nine())), ours)

    @contextlib.contextmanager
    def cutting(path, framework):
        with safe_open(path, framework=framework) as opened:
            yield opened
        os.truncate(path, ours.stat().st_size - 4)

    monkeypatch.setattr("feature_files.container.safe_open", cutting)
    assert "became shorter" in refusal(ours)


def limited(arguments):
    """The command with 60 MB more of addresses than there are."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 60 * 2**20, now + 60 * 2**20))
    return (train_IEMOCAP if arguments[0] == "--features" else feature_files).main(arguments)


@pytest.mark.parametrize("command", [["inspect", "a"], ["convert", "a", "b"], ["--features", "a", "--device", "cpu"]])
def test_a_file_that_memory_does_not_hold_is_a_line(tmp_path, command):
    nine = (*make_nine({"a": 1000, "b": 1}, (30_000, 3, 3))[:7], ["a"], ["b"])

    def make(folder):
        (folder / "a").write_bytes(pickle.dumps(nine))
        return command

    assert judge(Attack("", "", make, limited, refuse=True, seconds=100), tmp_path) == ""


@pytest.mark.parametrize("command", ["inspect", "convert", "train"])
def test_out_of_memory_at_any_point_is_a_line(save, tmp_path, capsys, monkeypatch, command):
    def full(*given, **named):
        raise MemoryError

    monkeypatch.setattr(feature_files, "read", full, raising=False)
    monkeypatch.setattr(inspection, "inspect", full)
    path, out = save(make_nine()), tmp_path / "out"
    if command == "train":
        assert train_IEMOCAP.main(["--features", str(path), "--out", str(out), "--device", "cpu"]) == 1
    else:
        assert feature_files.main([command, str(path), *[str(out)] * (command == "convert")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "out of memory" in said and not out.exists()


def test_missing_rows_survive_conversion_and_are_refused_without_mask(save, tmp_path):
    nine = make_nine()
    nine[4][IDS[0]][1] = np.nan
    ours = tmp_path / "a.safetensors"
    assert feature_files.main(["convert", str(save(nine)), str(ours), "--missing", "mask"]) == 0
    assert "acoustic" in refusal(ours)
    lost = np.isnan(feature_files.read(ours, missing="mask").dialogues[IDS[0]].features["acoustic"]).all(1)
    assert lost.tolist() == [False, True, False]


def by_hand(path, **changes):
    """A container as the README says to write one, without checksums."""
    tensors = {k: v for k, v in changes.items() if isinstance(v, np.ndarray)}
    metadata = {k: v for k, v in changes.items() if k in ("format", "corpus")}
    about = ABOUT | {k: v for k, v in changes.items() if k not in tensors | metadata}
    write_ours(path, {k: v for k, v in about.items() if v is not None}, metadata, **tensors)


def test_a_container_made_by_hand(tmp_path):
    path = tmp_path / "a.safetensors"
    by_hand(path)
    corpus = feature_files.read(path)
    assert corpus.label_names == ("calm", "cross") and corpus.dims == {"text": 4}
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    by_hand(path, text=np.array([[1], [np.nan], [2]], np.float32))
    assert "text" in refusal(path) and "'a'" in refusal(path)


NONE = np.zeros(0, np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"speakers": ["F"]},
        {"speakers": None},
        {"sentences": 3},
        {"dialogues": [["a", 2], ["a", 1]]},
        {"dialogues": [["a", 4], ["b", -1]]},
        {"dialogues": [["a", 3], ["b", 1]]},
        {"dialogues": []},
        {"dialogues": [], "speakers": [], "sentences": [], "utterances": [], "text": NONE[:, None], "labels": NONE},
        {"splits": {"train": ["a"], "test": []}},
        {"splits": {"train": ["a"], "test": ["c"]}},
        {"splits": []},
        {"label_names": ["calm"]},
        {"label_names": [1, 2]},
        {"labels": np.array([0.5, 1, 0])},
        {"labels": np.array([0, 1, -1])},
        {"labels": np.array([[0], [1], [0]])},
        {"text": np.ones((2, 4), np.float32)},
        {"text": np.ones((3, 0), np.float32)},
        {"text": np.ones((3, 4), np.int16)},
        {"format": "other"},
        {"corpus": "[]"},
        {"corpus": "{"},
    ],
)
def test_a_wrong_container_is_one_line(tmp_path, changes):
    path = tmp_path / "a.safetensors"
    by_hand(path, **changes)
    refusal(path)


@pytest.mark.parametrize(
    "shard, problem",
    [
        ({"lacking": "x"}, "provenance: no part"),
        ({"lacking": {"text": ["no text"]}}, "provenance: no part"),
        ({"lacking": {"text": {"no text": "3"}}}, "provenance: no part"),
        ({"of": 10**15}, f"parts {', '.join(map(str, range(2, 22)))} of"),
    ],
)
def test_a_part_that_is_none_is_one_line(tmp_path, capsys, shard, problem):
    part, out = tmp_path / "1.safetensors", tmp_path / "out.safetensors"
    by_hand(part, provenance={"shard": {"index": 1, "of": 1} | shard})
    assert feature_files.main(["merge", str(part), str(out)]) == 2 and not out.exists()
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"{part}: {problem}") and complaint.count("\n") == 1


def test_join_puts_text_and_the_rest_together(save, tmp_path):
    nine = make_nine()
    text = save((*nine[:4], nine[4], {}, *nine[6:]), "text.pkl")
    shuffled = [dict(t) for t in nine[:7]]
    order = [2, 0, 1]
    for table in shuffled:
        rows = table[IDS[0]]
        table[IDS[0]] = rows[order] if isinstance(rows, np.ndarray) else [rows[k] for k in order]
    rest = save((*shuffled[:3], {}, *shuffled[4:], *nine[7:]), "rest.pkl")
    out = tmp_path / "out.pkl"
    assert feature_files.main(["join", str(text), str(rest), str(out)]) == 0
    same(feature_files.read(save(nine)), feature_files.read(out))  # found by utterance id, in whatever order


def test_join_where_dialogues_name_their_utterances_alike(save, tmp_path):
    nine = make_nine()
    for i, row in nine[0].items():
        nine[0][i] = [f"u{k}" for k in range(len(row))]
    text, rest = save((*nine[:4], nine[4], {}, *nine[6:]), "text.pkl"), save((*nine[:3], {}, *nine[4:]), "rest.pkl")
    out = tmp_path / "out.pkl"
    assert feature_files.main(["join", str(text), str(rest), str(out)]) == 0
    same(feature_files.read(save(nine)), feature_files.read(out))


def test_join_by_dialogue_where_no_utterances_are_named(save, tmp_path):
    nine = make_nine()
    text = save([nine[1], nine[2], *(nine[3:4] * 4), nine[6], IDS[:1], IDS[2:3], IDS[1:2]], "text.pkl")
    out = tmp_path / "out.safetensors"
    assert feature_files.main(["join", str(text), str(save(nine)), str(out), "--text-layers", "1"]) == 0
    corpus = feature_files.read(out)
    assert corpus.splits["valid"] == (IDS[1],)  # the validation split that only one file has
    np.testing.assert_array_equal(corpus.dialogues[IDS[2]].features["visual"], nine[5][IDS[2]])


def _other_labels(nine):
    nine[2][IDS[0]] = [0, 0, 0]


def _other_utterance(nine):
    nine[0][IDS[0]][1] = "stranger"


def _fewer(nine):
    for table in nine[:7]:
        del table[IDS[3]]


def _other_split(nine):
    nine[7], nine[8] = [IDS[0]], [IDS[1], IDS[2]]


def _no_text(nine):
    nine[3] = {}


@pytest.mark.parametrize(
    ("change", "which", "named"),
    [
        (_other_labels, "av", ["labels", IDS[0]]),
        (_other_utterance, "av", [IDS[0], f"{IDS[0]}_F001"]),
        (_fewer, "av", [IDS[3]]),
        (_fewer, "text", ["2 utterances"]),
        (_other_split, "av", ["train and test"]),
        (_no_text, "text", ["no text"]),
    ],
)
def test_join_refuses_what_does_not_match(save, tmp_path, capsys, change, which, named):
    files = {"text": make_nine(), "av": make_nine()}
    change(files[which])
    paths = [str(save(content, f"{name}.pkl")) for name, content in files.items()]
    assert feature_files.main(["join", *paths, str(tmp_path / "out.pkl")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(name in error for name in named)
    assert not (tmp_path / "out.pkl").exists()


def test_errors_are_one_line_and_exit_status_2(save, tmp_path, capsys):
    path = str(save(make_nine()))
    for arguments in (
        ["inspect", str(tmp_path / "absent.pkl")],
        ["inspect", path, "--plot", str(tmp_path / "absent" / "a.png")],
        ["inspect", path, "--plot", str(tmp_path / "a.txt2")],
        ["convert", path, str(tmp_path / "absent" / "out.pkl")],
        ["convert", path, str(tmp_path / "absent" / "out.safetensors")],
        ["convert", path, str(tmp_path / "out.pkl"), "--text-layers", "7"],
        ["download", "nothing"],
    ):
        assert feature_files.main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1 and shown.out == ""


def test_as_a_script(tmp_path, monkeypatch, capsys):
    """As ``python -m`` runs it, in this process; in one of its own: test_feature_attacks.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["feature_files", "inspect", "absent.pkl"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("feature_files", run_name="__main__", alter_sys=True)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "absent.pkl" in error


def test_the_readme_lists_the_layouts():
    readme = (ROOT / "IEMOCAP_features" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([\w-]+)` \|", readme, re.MULTILINE)
    assert {name: int(number) for number, name in rows} == LAYOUTS


def test_the_examples_of_the_readme_write_files_that_are_read(tmp_path, monkeypatch):
    readme = (ROOT / "IEMOCAP_features" / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(example, {})
    assert feature_files.read("mine.pkl").dims == {"text": 100, "acoustic": 30}
    assert feature_files.read("mine.safetensors").label_names == ("calm", "cross")
