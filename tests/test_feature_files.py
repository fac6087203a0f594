"""Small files of each layout, whole and broken, made here."""

import hashlib
import os
import pickle

import numpy as np
import pytest
from feature_content import LENGTHS, make_nine, refusal

import feature_files
from dataloader import IEMOCAP_LABELS
from files import InputError


@pytest.mark.parametrize("protocol", range(6))
def test_nine_tuple_puts_every_field_in_its_place(save, protocol):
    nine = make_nine()
    path = save(tuple(nine), protocol=protocol)
    corpus = feature_files.read(path)
    assert corpus.dims == {"text": 5, "visual": 3, "acoustic": 4}  # audio comes before visual on disk
    assert corpus.splits == {"train": ("Ses01F_impro01", "Ses02M_script01"), "test": ("Ses05F_impro02",)}
    assert corpus.label_names == IEMOCAP_LABELS
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(corpus.dialogues) == list(LENGTHS)  # also the one in no split
    for i, dialogue in corpus.dialogues.items():
        assert dialogue.utterances == tuple(nine[0][i])
        assert dialogue.speakers == tuple(nine[1][i])
        assert dialogue.labels.tolist() == nine[2][i] and dialogue.labels.dtype == np.int64
        assert dialogue.sentences == tuple(nine[6][i])
        for modality, k in (("text", 3), ("acoustic", 4), ("visual", 5)):
            np.testing.assert_array_equal(dialogue.features[modality], nine[k][i])
            assert dialogue.features[modality].dtype == np.float32 and dialogue.features[modality].flags.writeable


def python2_nine():
    """The bytes Python 2 and NumPy 1 wrote: byte strings, `numpy.core`, sets by `__builtin__`, arrays by the row."""

    def string(text):
        raw = text.encode("latin1")
        return b"U" + bytes([len(raw)]) + raw

    def table(value):
        return b"}(" + b"".join(string(i) + value(i) for i in ("Ses01F_a", "Ses05F_b")) + b"u"

    def array(numbers):
        raw = np.asarray(numbers, ">f8").tobytes()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n"
            b"(U\x02f8K\x00K\x01tR(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10" + raw + b"tb"
        )

    def strings(*texts):
        return b"](" + b"".join(map(string, texts)) + b"e"

    rows = {"text": 1.0, "audio": 2.0, "visual": 3.0}
    return (
        b"\x80\x02("
        + table(lambda i: strings(i + "_F000", i + "_M000"))
        + table(lambda i: strings("F", "M"))
        + table(lambda i: b"](K\x03K\x05e")
        + b"".join(table(lambda i, v=v: b"](" + array([v, -v]) + array([v + 0.5, v]) + b"e") for v in rows.values())
        + table(lambda i: strings("Ol\u00e9", "No."))
        + b"c__builtin__\nset\n("
        + strings("Ses01F_a")
        + b"tR"
        + b"c__builtin__\nset\n("
        + strings("Ses05F_b")
        + b"tRt."
    )


def test_python2_file_of_lists_of_arrays_and_sets(save):
    raw = python2_nine()
    assert isinstance(pickle.loads(raw, encoding="latin1"), tuple)  # a true pickle, by Python's own reader
    corpus = feature_files.read(save(raw))
    dialogue = corpus.dialogues["Ses01F_a"]
    assert dialogue.sentences == ("Ol\u00e9", "No.") and dialogue.speakers == ("F", "M")
    assert dialogue.features["acoustic"].tolist() == [[2.0, -2.0], [2.5, 2.0]]
    assert dialogue.features["visual"].tolist() == [[3.0, -3.0], [3.5, 3.0]]
    assert dialogue.labels.tolist() == [3, 5]
    assert corpus.splits == {"train": ("Ses01F_a",), "test": ("Ses05F_b",)}


def test_numpy_1_module_paths(save):
    old = pickle.dumps(tuple(make_nine()), 2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    assert feature_files.read(save(old)).dims == {"text": 5, "visual": 3, "acoustic": 4}


@pytest.mark.parametrize(
    "convert",
    [
        lambda rows: rows.tolist(),
        lambda rows: list(rows),
        lambda rows: tuple(map(list, rows)),
        lambda rows: rows.astype(np.float64),
        lambda rows: np.asfortranarray(rows),
        lambda rows: np.array([*rows, None], dtype=object)[:-1],
    ],
    ids=["lists", "list of arrays", "tuples", "float64", "fortran", "object array"],
)
def test_features_in_any_container(save, convert):
    nine = make_nine()
    want = nine[3]
    nine[3] = {i: convert(rows) for i, rows in want.items()}
    corpus = feature_files.read(save(nine))
    for i, rows in want.items():
        np.testing.assert_array_equal(corpus.dialogues[i].features["text"], rows)


def test_sets_are_sorted_and_lists_keep_their_order(save):
    nine = make_nine({f"d{k}": 2 for k in range(12)})
    nine[7], nine[8] = {f"d{k}" for k in range(10)}, ["d11", "d10"]
    corpus = feature_files.read(save(nine))
    assert corpus.splits == {"train": tuple(f"d{k}" for k in range(10)), "test": ("d11", "d10")}


def test_numbered_dialogues_sort_as_numbers(save):
    nine = make_nine(dict.fromkeys(range(12), 2))
    nine[7], nine[8] = set(range(11)), {np.int64(11)}
    assert feature_files.read(save(nine)).splits["train"] == tuple(map(str, range(11)))


def test_width_zero_everywhere_is_no_modality(save):
    assert feature_files.read(save(make_nine(dims=(5, 4, 0)))).dims == {"text": 5, "acoustic": 4}
    nine = make_nine()
    nine[5] = {}
    assert feature_files.read(save(nine)).dims == {"text": 5, "acoustic": 4}


def test_legal_oddities(save):
    nine = make_nine(classes=2)
    nine[3] = {i: np.ones((n, 5), np.float32) for i, n in LENGTHS.items()}  # constant columns
    nine[1] = {i: ["M"] * n for i, n in LENGTHS.items()}  # one speaker
    corpus = feature_files.read(save(nine))
    assert corpus.num_classes == 6 and corpus.num_speakers == 1  # four classes are missing from train
    assert len(corpus.dialogues["Ses02M_script01"]) == 1
    assert all("Ses03F_left_out" not in ids for ids in corpus.splits.values())


def test_speakers_of_any_kind_become_strings(save):
    nine = make_nine()
    nine[1]["Ses01F_impro01"] = [b"M", 7, np.str_("Joey")]
    nine[1]["Ses05F_impro02"] = [[0, 1, 0], np.array([1, 0, 0]), [0, 0, 0], [0, 0, 1]]
    dialogues = feature_files.read(save(nine)).dialogues
    assert dialogues["Ses01F_impro01"].speakers == ("M", "7", "Joey")
    assert dialogues["Ses05F_impro02"].speakers == ("speaker 1", "speaker 0", "speaker other", "speaker 2")


def test_class_names(save):
    def names(ids, labels):
        nine = make_nine(dict.fromkeys(ids, len(labels)))
        nine[2] = dict.fromkeys(ids, labels)
        nine[7], nine[8] = ids[:1], ids[1:]
        return feature_files.read(save(nine)).label_names

    assert names(["1DmNV9C1hbY", "2iD-tVS8NPw"], [0, 1]) == ("negative", "positive")
    assert names(["dialogue_01", "dialogue_02"], [0, 1]) == ("class 0", "class 1")
    assert names(["a", "b"], [0.0, 2.0]) == ("class 0", "class 1", "class 2")
    assert names(["Ses01F_a", "Ses05F_b"], [0, 1]) == IEMOCAP_LABELS
    assert len(names(["a", "b"], list(range(12)))) == 12  # no gaps beneath, so a set we do not know


def damage(field, dialogue, value):
    def apply(nine):
        if dialogue is None:
            nine[field] = value(nine[field]) if callable(value) else value
        else:
            nine[field] = nine[field] | {dialogue: value(nine[field][dialogue]) if callable(value) else value}

    return apply


def put(value):
    def apply(rows):
        rows = rows.copy()
        rows[1, 2] = value
        return rows

    return apply


D = "Ses01F_impro01"
WRONG = {
    "speakers short": (damage(1, D, lambda x: x[:-1]), ["speakers", D, "2 for 3"]),
    "ids short": (damage(0, D, lambda x: x[:-1]), ["ids", D, "2 for 3"]),
    "sentences long": (damage(6, D, lambda x: [*x, "x"]), ["sentences", D, "4 for 3"]),
    "text short": (damage(3, D, lambda x: x[:-1]), ["text", D, "2 rows for 3"]),
    "acoustic long": (damage(4, D, lambda x: np.tile(x, (2, 1))), ["acoustic", D, "6 rows for 3"]),
    "visual absent": (damage(5, None, lambda x: {i: x[i] for i in x if i != D}), ["visual", D]),
    "speakers absent": (damage(1, None, lambda x: {i: x[i] for i in x if i != D}), ["speakers", D]),
    "unequal rows": (damage(3, D, lambda x: [x[0], x[1][:-1], x[2]]), ["text", D, "row 0 has 5", "row 1 has 4"]),
    "unequal dialogues": (damage(5, D, lambda x: x[:, :-1]), ["visual", D, "width 2", "3"]),
    "no numbers": (damage(3, D, [["a"]] * 3), ["text", D, "numbers"]),
    "a number for rows": (damage(3, D, 3.0), ["text", D, "float"]),
    "one dimension": (damage(3, D, np.zeros(3)), ["text", D, "shape [3]"]),
    "huge numbers": (damage(3, D, [[10**400]] * 3), ["text", D, "too large"]),
    "nan": (damage(4, D, put(np.nan)), ["acoustic", D, "1 values", "1 in 1 dialogues"]),
    "inf": (damage(3, D, put(-np.inf)), ["text", D, "infinite"]),
    "too large for float32": (damage(3, D, lambda x: np.full(x.shape, 1e300)), ["text", D, "15 values"]),
    "label 6": (damage(2, D, [0, 6, 1]), ["labels", D, "label 6", "0..5"]),
    "label -1": (damage(2, D, [0, -1, 1]), ["labels", D, "-1"]),
    "label 1.5": (damage(2, D, [0, 1.5, 1]), ["labels", D, "1.5"]),
    "label nan": (damage(2, D, [0, np.nan, 1]), ["labels", D, "nan"]),
    "label text": (damage(2, D, ["happy"] * 3), ["labels", D, "'happy'"]),
    "labels in rows": (damage(2, D, np.eye(3)), ["labels", D, "ndarray"]),
    "labels in rows of whole numbers": (damage(2, D, np.eye(3, dtype=int)), ["labels", D, "ndarray"]),
    "text no table": (damage(3, None, np.array([1, None], dtype=object)), ["text", "ndarray"]),
    "labels no list": (damage(2, D, 4), ["labels", D, "int"]),
    "empty dialogue": (damage(2, D, []), ["labels", D, "empty"]),
    "two hot": (damage(1, D, [[1, 1]] * 3), ["speakers", D, "one-hot"]),
    "unknown dialogue": (damage(7, None, lambda x: [*x, "Ses09F_x"]), ["train", "Ses09F_x", "no such"]),
    "leak": (damage(8, None, lambda x: [*x, D]), ["test", D, "train"]),
    "duplicate": (damage(7, None, lambda x: [*x, D]), ["train", D, "2 times"]),
    "no train": (damage(7, None, []), ["train", "no dialogues"]),
    "no test": (damage(8, None, set()), ["test", "no dialogues"]),
    "split no list": (damage(8, None, None), ["test", "NoneType"]),
    "split of lists": (damage(8, None, [["x"]]), ["test", "list"]),
    "labels no table": (damage(2, None, [1, 2]), ["labels", "list"]),
    "no features": (lambda nine: nine.__setitem__(slice(3, 6), make_nine(dims=(0, 0, 0))[3:6]), ["features"]),
    "same id": (damage(2, None, lambda x: {1: [0], "1": [0]}), ["labels", "'1'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_one_line_naming_it(save, case):
    apply, names = WRONG[case]
    nine = make_nine()
    apply(nine)
    message = refusal(save(tuple(nine)))
    for name in names:
        assert name in message


def test_nan_is_counted_over_the_file(save):
    nine = make_nine()
    for i in (D, "Ses05F_impro02"):
        nine[4][i][:2, 0] = np.nan
    assert "2 values are NaN or infinite (4 in 2 dialogues of the file)" in refusal(save(nine))


def test_a_large_label_with_gaps_beneath_is_a_mistake(save):
    nine = make_nine({"a": 2, "b": 2})
    nine[2]["b"] = [0, 7]
    nine[7], nine[8] = ["a"], ["b"]
    message = refusal(save(nine))
    assert "dialogue 'b'" in message and "label 7" in message
    nine[2]["b"] = [0, 6]
    assert feature_files.read(save(nine)).num_classes == 7


def test_files_that_are_no_feature_files(save, tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.pkl")
    assert "directory" in refusal(tmp_path)
    assert "empty" in refusal(save(b""))
    assert "Git-LFS" in refusal(save(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"))
    assert "web page" in refusal(save(b"<!DOCTYPE html><html></html>"))
    for raw in (b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"id,label\na,0\n", b"Some text", b"{}", b"\x1f\x8b\x08"):
        assert "not a pickle" in refusal(save(raw))
    assert "breaks off" in refusal(save(pickle.dumps(tuple(make_nine()))[:-200]))
    assert "8 items" in refusal(save(tuple(make_nine()[:8])))
    assert "dict" in refusal(save({}))
    assert "int" in refusal(save(3))


def test_a_pickle_that_runs_code_is_refused_and_nothing_happens(save, tmp_path):
    trace = tmp_path / "trace"
    raw = f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()
    message = refusal(save(raw))
    assert "os.system" in message and not trace.exists()


def test_writes_what_the_fields_own_loaders_read(save, tmp_path):
    corpus = feature_files.read(save(tuple(make_nine(dims=(5, 4, 0)))))
    corpus.splits["valid"] = ("Ses03F_left_out",)
    path = tmp_path / "out.pkl"
    feature_files.write_nine_tuple(corpus, path)
    assert b"numpy._core" not in path.read_bytes()  # NumPy 1 has no such module
    with path.open("rb") as stream:
        ids, speakers, labels, text, audio, visual, sentences, train, test = pickle.load(stream, encoding="latin1")
    for i, d in corpus.dialogues.items():
        assert (ids[i], speakers[i], sentences[i]) == (list(d.utterances), list(d.speakers), list(d.sentences))
        assert labels[i] == d.labels.tolist() and type(labels[i][0]) is int
        np.testing.assert_array_equal(text[i], d.features["text"])
        np.testing.assert_array_equal(audio[i], d.features["acoustic"])
        assert visual[i].shape == (len(d), 0) and text[i].dtype == np.float32
    assert train == ["Ses01F_impro01", "Ses02M_script01", "Ses03F_left_out"]  # the layout has no third split
    assert test == ["Ses05F_impro02"]
    assert feature_files.read(path).dims == corpus.dims


def test_writing_replaces_whole_or_not_at_all(save, tmp_path, monkeypatch):
    corpus = feature_files.read(save(tuple(make_nine())))
    path = tmp_path / "out.pkl"
    path.write_bytes(b"before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        feature_files.write_nine_tuple(corpus, path)
    assert path.read_bytes() == b"before" and {p.name for p in tmp_path.iterdir()} == {"out.pkl", "features.pkl"}
