"""Every layout but the 9-tuple, as its publisher writes it: each field in its place."""

import io
import json
import pickle
import sys
import types

import numpy as np
import pytest
from feature_content import LENGTHS, make_nine, refusal
from safetensors.numpy import save_file

import feature_files
from dataloader import IEMOCAP_LABELS, IGNORE_LABEL
from feature_files.container import FORMAT
from feature_files.unlabelled import read_unlabelled
from files import InputError

IDS = list(LENGTHS)
MELD = {0: 3, 1: 1, 2: 4, 3: 2}  # integer ids
RNG = np.random.default_rng(1)


def layers(lengths, width=6):
    return [{i: RNG.normal(size=(n, width)).astype(np.float32) for i, n in lengths.items()} for _ in range(4)]


def meld(dims=(5, 4, 3)):
    """The nine usual fields with one-hot speakers of 9, and sentiments."""
    nine = make_nine(MELD, dims, classes=7)
    nine[1] = {i: np.eye(9)[[(k + i) % 9 for k in range(n)]] for i, n in MELD.items()}
    sentiment = {i: [(k + 1) % 3 for k in range(n)] for i, n in MELD.items()}
    return nine, sentiment


def check(corpus, nine, splits=None):
    """Everything but text is what it is in this 9-tuple."""
    tables = [{str(i): row for i, row in table.items()} for table in nine[:7]]
    for i, d in corpus.dialogues.items():
        assert d.labels.tolist() == list(tables[2][i])
        assert d.sentences == tuple(tables[6][i])
        for modality, k in (("acoustic", 4), ("visual", 5)):
            if modality in corpus.dims:
                np.testing.assert_allclose(d.features[modality], tables[k][i], rtol=1e-6)
    assert corpus.splits == (splits or {"train": tuple(map(str, nine[7])), "test": tuple(map(str, nine[8]))})


def text_is(corpus, table):
    for i, rows in table.items():
        np.testing.assert_allclose(corpus.dialogues[str(i)].features["text"], rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dims", "layout"), [((100, 100, 512), 1), ((100, 1582, 342), 4), ((1024, 100, 512), 8), ((7, 9, 8), 2)]
)
def test_nine_tuples_are_told_apart_by_dims(save, dims, layout):
    path = save(tuple(make_nine(dims=dims)))
    assert feature_files.inspect(path)["layout"] == layout


def test_four_class_iemocap(save):
    corpus = feature_files.read(save(tuple(make_nine(dims=(1024, 100, 512), classes=4))))
    assert corpus.label_names == ("happy", "sad", "neutral", "angry")
    assert feature_files.read(save(tuple(make_nine(dims=(1024, 100, 512), classes=6)))).label_names == IEMOCAP_LABELS
    # Elsewhere, only what no six-class file of the size could be.
    assert feature_files.read(save(tuple(make_nine(classes=4)))).num_classes == 6
    many = {f"Ses0{k % 5 + 1}F_{k:03}": 11 for k in range(100)}
    assert feature_files.read(save(tuple(make_nine(many, classes=4)))).num_classes == 4


def test_layout_2_without_audio_and_visual(save):
    nine = make_nine()
    corpus = feature_files.read(save((*nine[:4], *nine[6:])))
    assert corpus.dims == {"text": 5}
    check(corpus, nine)
    text_is(corpus, nine[3])


def test_layout_3_meld_raw(save):
    nine, sentiment = meld()
    ids, speakers, labels, text, audio, _, sentences, train, test = nine
    path = save((ids, speakers, labels, text, audio, sentences, train, test, sentiment), protocol=2)
    corpus = feature_files.read(path)
    assert feature_files.inspect(path)["layout"] == 3
    assert corpus.dims == {"text": 5, "acoustic": 4}
    assert corpus.label_names == ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
    assert corpus.dialogues["2"].speakers == ("speaker 2", "speaker 3", "speaker 4", "speaker 5")
    assert corpus.dialogues["0"].utterances == tuple(ids[0])
    check(corpus, nine)
    text_is(corpus, text)
    other = feature_files.read(path, target="sentiment")
    assert other.label_names == ("neutral", "positive", "negative")
    assert other.dialogues["2"].labels.tolist() == sentiment[2]


@pytest.mark.parametrize("extra", ["sentiment", None, []])
def test_layout_5_meld_trimodal(save, extra):
    nine, sentiment = meld()
    path = save((*nine, sentiment if extra == "sentiment" else extra))
    corpus = feature_files.read(path)
    assert feature_files.inspect(path)["layout"] == 5
    assert corpus.dims == {"text": 5, "visual": 3, "acoustic": 4} and corpus.num_classes == 7
    check(corpus, nine)
    text_is(corpus, nine[3])
    if extra == "sentiment":
        assert feature_files.read(path, target="sentiment").dialogues["0"].labels.tolist() == sentiment[0]
    else:
        assert "no sentiment" in refusal(path, target="sentiment")


def cosmic(nine, text, sentiment=None):
    """Layout 6: test before valid."""
    targets = [nine[2]] if sentiment is None else [nine[2], sentiment]
    ids = list(nine[1])
    return [nine[1], *targets, *text, nine[6], ids[:2], ids[2:3], ids[3:]]


def test_layout_6_cosmic(save):
    nine, text = make_nine(), layers(LENGTHS)
    path = save(cosmic(nine, text))
    corpus = feature_files.read(path)
    assert feature_files.inspect(path)["layout"] == 6
    splits = {"train": tuple(IDS[:2]), "valid": tuple(IDS[3:]), "test": tuple(IDS[2:3])}
    check(corpus, nine, splits)
    assert corpus.dialogues[IDS[0]].speakers == ("F", "M", "F")
    text_is(corpus, {i: np.mean([t[i] for t in text], axis=0) for i in LENGTHS})
    text_is(feature_files.read(path, text_layers="1"), text[0])  # the network's last layer is the first in the file
    text_is(feature_files.read(path, text_layers="4"), text[3])
    text_is(
        feature_files.read(path, text_layers="concat"), {i: np.concatenate([t[i] for t in text], 1) for i in LENGTHS}
    )
    for wrong in ("5", "0", "last", "-1"):
        message = refusal(path, text_layers=wrong)
        assert "--text-layers" in message and "mean, concat, 1, 2, 3, 4" in message


def test_layout_6_cosmic_meld(save):
    nine, sentiment = meld()
    text = layers(MELD)
    path = save(cosmic(nine, text, sentiment))
    corpus = feature_files.read(path, text_layers="2")
    assert feature_files.inspect(path)["layout"] == 6
    check(corpus, nine, {"train": ("0", "1"), "valid": ("3",), "test": ("2",)})
    text_is(corpus, text[1])
    assert corpus.num_classes == 7
    assert feature_files.read(path, target="sentiment").dialogues["2"].labels.tolist() == sentiment[2]


def test_layout_7_m3net_joins_two_files_of_a_folder(save):
    nine, text = make_nine(), layers(LENGTHS)
    folder = save(tuple(nine), "IEMOCAP_features.pkl").parent
    save(cosmic(nine, text), "iemocap_features_roberta.pkl")
    corpus = feature_files.read(folder, text_layers="3")
    assert feature_files.inspect(folder)["layout"] == 7
    check(corpus, nine, {"train": tuple(IDS[:2]), "valid": tuple(IDS[3:]), "test": tuple(IDS[2:3])})
    text_is(corpus, text[2])
    nine[2] = nine[2] | {IDS[0]: [5, 5, 5]}
    save(tuple(nine), "IEMOCAP_features.pkl")
    assert IDS[0] in refusal(folder)


def test_layout_8_sdt_and_graphsmile(save):
    nine, text = make_nine(), layers(LENGTHS)
    ids, speakers, labels, _, audio, visual, sentences, train, test = nine
    path = save((ids, speakers, labels, *text, audio, visual, sentences, train, test), protocol=2)
    corpus = feature_files.read(path, text_layers="2")
    assert feature_files.inspect(path)["layout"] == 8
    assert corpus.dims == {"text": 6, "visual": 3, "acoustic": 4} and corpus.label_names == IEMOCAP_LABELS
    check(corpus, nine)
    text_is(corpus, text[1])

    nine, sentiment = meld()
    text = layers(MELD)
    ids, speakers, labels, _, audio, visual, sentences, train, test = nine
    for content in (
        (ids, speakers, labels, *text, audio, visual, sentences, train, test, sentiment),  # SDT
        (ids, speakers, labels, sentiment, *text, audio, visual, sentences, train, test, "unused"),  # GraphSmile
    ):
        path = save(content)
        corpus = feature_files.read(path, text_layers="4")
        assert feature_files.inspect(path)["layout"] == 8 and corpus.num_classes == 7
        check(corpus, nine)
        text_is(corpus, text[3])
        assert feature_files.read(path, target="sentiment").dialogues["0"].labels.tolist() == sentiment[0]


@pytest.mark.parametrize("of_meld", [False, True])
def test_layout_9_multiemo_is_a_folder(save, of_meld):
    nine, sentiment = meld() if of_meld else (make_nine(), None)
    other = {k: {i: rows * 2 for i, rows in nine[k].items()} for k in (3, 4, 5)}
    folder = save((*nine, sentiment) if of_meld else tuple(nine), "Speakers.pkl").parent
    for name, k in (("Text", 3), ("Audio", 4), ("Visual", 5)):
        save(other[k], f"{name}Features.pkl")
    corpus = feature_files.read(folder)
    assert feature_files.inspect(folder)["layout"] == 9
    assert corpus.num_classes == (7 if of_meld else 6)
    check(corpus, [*nine[:3], other[3], other[4], other[5], *nine[6:]])
    text_is(corpus, other[3])
    before = corpus.sha256
    save({i: rows + 1 for i, rows in other[4].items()}, "AudioFeatures.pkl")
    assert feature_files.read(folder).sha256 != before  # every file of the folder counts


@pytest.fixture
def sample_class():
    """A class ``Sample`` in a module that is gone when the file is read."""
    module = types.ModuleType("cogmen_of_someone")

    class Sample:
        pass

    Sample.__module__, Sample.__qualname__ = module.__name__, "Sample"
    module.Sample = Sample
    sys.modules[module.__name__] = module
    yield Sample
    del sys.modules[module.__name__]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("kind", ["objects", "dictionaries"])
def test_layout_10_lists_of_samples(save, sample_class, kind, protocol):
    nine = make_nine()

    def sample(i):
        plural = "s" if kind == "dictionaries" else ""
        values = [i, nine[1][i], nine[2][i], nine[3][i], nine[4][i], nine[5][i], nine[6][i]]
        names = ["vid", "speaker" + plural, "label" + plural, "text", "audio", "visual", "sentence"]
        fields = dict(zip(names, values, strict=True))
        if kind == "dictionaries":
            return fields
        made = sample_class()
        made.__dict__.update(fields)
        return made

    content = {"train": [sample(IDS[0])], "dev": [sample(IDS[1])], "test": [sample(IDS[2]), sample(IDS[3])]}
    raw = pickle.dumps(content, protocol)
    del sys.modules["cogmen_of_someone"]
    try:
        path = save(raw)
        corpus = feature_files.read(path)
        assert feature_files.inspect(path)["layout"] == 10
    finally:
        sys.modules["cogmen_of_someone"] = types.ModuleType("cogmen_of_someone")
    check(corpus, nine, {"train": (IDS[0],), "valid": (IDS[1],), "test": (IDS[2], IDS[3])})
    text_is(corpus, nine[3])
    assert corpus.dialogues[IDS[0]].speakers == ("F", "M", "F")


@pytest.mark.parametrize("code", [b"i", b"o"])
def test_layout_10_old_style_instances_of_python_2(save, code):
    """Python 2 classes without a base: INST in protocol 0, OBJ in protocol 1 and 2."""

    def sample(vid):
        made = b"(icogmen.Sample\nSample\n" if code == b"i" else b"(ccogmen.Sample\nSample\no"
        return (
            made
            + b"(dS'vid'\nS'%s'\nsS'speaker'\n(lS'M'\nasS'label'\n(lI2\nasS'text'\n(l(lF1.5\naF2.5\naa" % vid
            + (b"sS'sentence'\n(lS'Ol\\xe9'\nasb")
        )

    raw = b"(dS'train'\n(l" + sample(b"Ses01F_a") + b"asS'test'\n(l" + sample(b"Ses05F_b") + b"as."
    corpus = feature_files.read(save(raw))
    assert corpus.dialogues["Ses01F_a"].features["text"].tolist() == [[1.5, 2.5]]
    assert corpus.dialogues["Ses05F_b"].sentences == ("Olé",)


def write_npy(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", array)


def utterance_folders(root, nine, absent=()):
    """Text one vector a file, acoustic frames, visual a folder of frames; means are the rows of the 9-tuple."""
    for i, names in nine[0].items():
        for k, name in enumerate(names):
            write_npy(root / "deberta-large-4-UTT", name, nine[3][i][k])
            row = nine[4][i][k]
            write_npy(root / "wav2vec-large-c-FRA", name, np.stack([row - 1, row + 1]))
            if name not in absent:
                row = nine[5][i][k]
                write_npy(root / "manet_FRA" / name, "frame_2", row + 0.5)
                write_npy(root / "manet_FRA" / name, "frame_1", row - 0.5)


def gcnet(nine):
    return [nine[0], nine[2], nine[1], nine[6], set(IDS[:2]), set(IDS[2:])]


@pytest.mark.parametrize("under", ["", "features"])
def test_layout_11_gcnet_pools_files_of_utterances(save, under):
    nine = make_nine()
    path = save(gcnet(nine), "IEMOCAP_features_raw_6way.pkl")
    utterance_folders(path.parent / under, nine)
    for target in (path, path.parent):
        corpus = feature_files.read(target)
        assert corpus.dims == {"text": 5, "visual": 3, "acoustic": 4}
        check(corpus, nine, {"train": tuple(sorted(IDS[:2])), "test": tuple(sorted(IDS[2:]))})
        text_is(corpus, nine[3])
        assert corpus.dialogues[IDS[0]].utterances == tuple(nine[0][IDS[0]])
        assert feature_files.inspect(target)["layout"] == 11


def test_layout_11_what_is_absent_is_zeros_or_missing(save):
    nine = make_nine()
    path = save(gcnet(nine))
    utterance_folders(path.parent, nine, absent=nine[0][IDS[0]][:1])
    assert feature_files.read(path).dialogues[IDS[0]].features["visual"][0].tolist() == [0, 0, 0]
    masked = feature_files.read(path, missing="mask").dialogues[IDS[0]].features["visual"]
    assert np.isnan(masked[0]).all() and np.isfinite(masked[1:]).all()
    (path.parent / "resnet_UTT").mkdir()
    assert "both visual" in refusal_of(path)


@pytest.mark.parametrize("ending", [".npy", "_UTT.npy", "/frame_1.npy"])
def test_layout_11_a_file_of_utterance_10_is_not_of_utterance_1(save, ending):
    nine = make_nine()
    names = {i: [f"{i}_utt{10**k}" for k in range(len(row))] for i, row in nine[0].items()}
    path = save(gcnet([names, *nine[1:]]))
    for i in IDS:
        for name, row in list(zip(names[i], nine[3][i], strict=True))[i == IDS[0] :]:  # one has no file
            (file := path.parent / "text" / f"{name}{ending}").parent.mkdir(parents=True, exist_ok=True)
            np.save(file, row)
    corpus = feature_files.read(path, missing="mask")
    assert np.isnan(corpus.dialogues[IDS[0]].features["text"][0]).all()
    for i in IDS:
        np.testing.assert_array_equal(corpus.dialogues[i].features["text"][i == IDS[0] :], nine[3][i][i == IDS[0] :])


def test_layout_12_merbench(save, tmp_path):
    nine = make_nine()
    whole = {u: {"emo": nine[2][i][k], "val": -10} for i in IDS for k, u in enumerate(nine[0][i])}
    np.savez_compressed(tmp_path / "label_6way.npz", whole_corpus=whole)
    utterance_folders(tmp_path / "features", nine)
    for target in (tmp_path, tmp_path / "label_6way.npz"):
        corpus = feature_files.read(target)
        assert feature_files.inspect(target)["layout"] == 12
        assert corpus.splits == {"train": (IDS[0], IDS[1], IDS[3]), "test": (IDS[2],)}  # the last session
        text_is(corpus, nine[3])
        for i in IDS:
            assert corpus.dialogues[i].labels.tolist() == nine[2][i]
            assert corpus.dialogues[i].speakers == ("F",) * len(nine[2][i])  # of the utterance's name
            np.testing.assert_allclose(corpus.dialogues[i].features["acoustic"], nine[4][i], rtol=1e-5, atol=1e-6)


def test_layout_13_dag_erc(save, tmp_path):
    def utterance(k, label):
        named = {"text": f"t{k}", "speaker": "FM"[k % 2], "cls": [k + 0.5, -k, 1.0]}
        return named | ({} if label is None else {"label": label})

    splits = {
        "train": [[utterance(0, "frustrated"), utterance(1, None), utterance(2, "sad")], [utterance(3, None)]],
        "dev": [[utterance(4, "excited")]],
        "test": [[utterance(5, "happy"), utterance(6, "neutral")]],
    }
    for split, dialogues in splits.items():
        (tmp_path / f"{split}_data_roberta.json.feature").write_text(json.dumps(dialogues))
    for target in (tmp_path, tmp_path / "test_data_roberta.json.feature"):
        corpus = feature_files.read(target)
        assert feature_files.inspect(target)["layout"] == 13
        assert corpus.splits == {"train": ("train_0",), "valid": ("dev_0",), "test": ("test_0",)}
        assert corpus.label_names == IEMOCAP_LABELS
        dialogue = corpus.dialogues["train_0"]  # without the utterance that has no label
        assert dialogue.labels.tolist() == [5, 1] and dialogue.sentences == ("t0", "t2")
        assert dialogue.features["text"].tolist() == [[0.5, 0, 1], [2.5, -2, 1]]
        assert corpus.dialogues["test_0"].speakers == ("M", "F")

    splits = {split: [[utterance(0, "b"), utterance(1, "a"), utterance(2, "c")]] for split in splits}
    for split, dialogues in splits.items():
        (tmp_path / f"{split}_data_roberta.json.feature").write_text(json.dumps(dialogues))
    assert feature_files.read(tmp_path).label_names == ("a", "b", "c")
    save({"stoi": {"c": 0, "a": 1}, "itos": ["c", "a"]}, "label_vocab.pkl")
    assert feature_files.read(tmp_path).label_names == ("c", "a", "b")
    (tmp_path / "dev_data_roberta.json.feature").write_text("{")
    assert "JSON" in str(refusal_of(tmp_path))


def refusal_of(folder):
    """The line about a file inside a folder."""
    with pytest.raises(InputError) as caught:
        feature_files.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_hostile_arrays_are_refused(save, tmp_path):
    nine = make_nine()
    path = save(gcnet(nine))
    utterance_folders(tmp_path, nine)
    victim = tmp_path / "deberta-large-4-UTT" / f"{nine[0][IDS[0]][0]}.npy"
    trace = tmp_path / "trace"

    class Bomb:
        def __reduce__(self):
            return open, (str(trace), "w")

    np.save(victim, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert "open" in refusal_of(path) and not trace.exists()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    for raw in (header.getvalue() + b"1234", b"\x93NUMPY", b"junk", header.getvalue()[:30]):
        victim.write_bytes(raw)
        assert "not a NumPy array" in refusal_of(path)
    np.savez(tmp_path / "label.npz", whole_corpus=np.array({"a": Bomb()}, dtype=object))
    assert "open" in refusal_of(tmp_path / "label.npz") and not trace.exists()
    np.savez(tmp_path / "label.npz", other=np.zeros(3))
    assert "whole_corpus" in refusal_of(tmp_path / "label.npz")


@pytest.mark.parametrize("absent", ["nan row", "none", "absent key", "width 0", "none row"])
def test_missing_modalities_are_refused_or_masked(save, absent):
    nine = make_nine()
    rows, first = nine[4], IDS[0]
    if absent == "nan row":
        rows[first][1] = np.nan
    elif absent == "none":
        rows[first] = None
    elif absent == "absent key":
        del rows[first]
    elif absent == "width 0":
        rows[first] = rows[first][:, :0]
    else:
        rows[first] = [rows[first][0], None, rows[first][2]]
    path = save(nine)
    message = refusal(path)
    assert "acoustic" in message and first in message
    masked = feature_files.read(path, missing="mask")
    lost = np.isnan(masked.dialogues[first].features["acoustic"]).all(1).tolist()
    assert lost == ([False, True, False] if "row" in absent else [True, True, True])
    assert np.isfinite(masked.dialogues[IDS[1]].features["acoustic"]).all()


def test_half_a_row_of_nan_is_a_mistake_even_where_rows_may_be_missing(save):
    nine = make_nine()
    nine[4][IDS[0]][1, 0] = np.nan
    assert "1 values" in refusal(save(nine), missing="mask")


def test_choices_that_are_none(save):
    path = save(make_nine())
    assert "--target" in refusal(path, target="valence")
    assert "--missing" in refusal(path, missing="impute")


def write_unlabelled(layout, folder, save, labels):
    """A file or folder of a layout whose labels went through a function of a row; None where there shall be none."""
    nine = make_nine()
    nine[2] = None if labels is None else {i: labels(row) for i, row in nine[2].items()}
    if layout == "m3net":
        save(tuple(nine), "IEMOCAP_features.pkl")
        return save(cosmic(nine, layers(LENGTHS)), "iemocap_features_roberta.pkl").parent
    if layout == "multiemo":
        save(tuple(nine), "Speakers.pkl")
        return save(nine[3], "TextFeatures.pkl").parent
    if layout == "cogmen":
        names = {"speakers": 1, "labels": 2, "text": 3, "audio": 4, "visual": 5, "sentence": 6}
        kept = {name: k for name, k in names.items() if nine[k] is not None}
        return save({"train": [{"vid": i} | {name: nine[k][i] for name, k in kept.items()} for i in IDS], "test": []})
    if layout == "gcnet":
        utterance_folders(folder, nine)
        return save(gcnet(nine))
    if layout == "merbench":
        whole = {u: {} if labels is None else {"emo": nine[2][i][k]} for i in IDS for k, u in enumerate(nine[0][i])}
        np.savez_compressed(folder / "label.npz", whole_corpus=whole)
        utterance_folders(folder / "features", nine)
        return folder
    if layout == "dag-erc":
        dialogues = [
            [
                {"text": nine[6][i][k], "speaker": nine[1][i][k], "cls": nine[3][i][k].tolist()}
                | ({} if labels is None else {"label": IEMOCAP_LABELS[nine[2][i][k]] if nine[2][i][k] else None})
                for k in range(LENGTHS[i])
            ]
            for i in IDS
        ]
        (folder / "new.json.feature").write_text(json.dumps(dialogues))
        return folder / "new.json.feature"
    rows = sum(LENGTHS.values())
    about = {"dialogues": list(LENGTHS.items()), **{name: ["x"] * rows for name in ("speakers", "sentences")}}
    about["utterances"] = [f"u{k}" for k in range(rows)]
    path = folder / "ours.safetensors"
    save_file({"text": np.concatenate(list(nine[3].values()))}, path, {"format": FORMAT, "corpus": json.dumps(about)})
    return path


LAYOUTS_WITHOUT_LABELS = ("m3net", "multiemo", "cogmen", "gcnet", "merbench", "dag-erc", "gan-ffn")


@pytest.mark.parametrize("layout", LAYOUTS_WITHOUT_LABELS)
def test_files_without_labels_are_read_for_use_and_not_for_training(save, tmp_path, layout):
    path = write_unlabelled(layout, tmp_path, save, None)
    corpus, problem = read_unlabelled(path, IEMOCAP_LABELS)
    assert problem is None and {len(d) for d in corpus.dialogues.values()} == set(LENGTHS.values())
    assert all((d.labels == IGNORE_LABEL).all() for d in corpus.dialogues.values())
    text = np.concatenate([d.features["text"] for d in corpus.dialogues.values()])
    if layout != "m3net":  # whose text is another file's
        np.testing.assert_allclose(text, np.concatenate(list(make_nine()[3].values())), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError) as caught:
        feature_files.read(path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("layout", ("m3net", "multiemo", "cogmen", "gcnet", "merbench"))
def test_labels_that_are_there_in_part_are_read(save, tmp_path, layout):
    path = write_unlabelled(layout, tmp_path, save, lambda row: [None, *row[1:]])
    corpus, problem = read_unlabelled(path, IEMOCAP_LABELS)
    want = [[IGNORE_LABEL, *row[1:]] for row in make_nine()[2].values()]
    assert problem is None and [d.labels.tolist() for d in corpus.dialogues.values()] == want


def test_all_turns_of_a_dag_erc_folder_are_read_for_use(tmp_path):
    for split, label in (("train", "sad"), ("test", None)):
        turns = [{"text": "t", "speaker": "F", "cls": [1.0, k], "label": label if k else None} for k in range(3)]
        (tmp_path / f"{split}_data_roberta.json.feature").write_text(json.dumps([turns]))
    corpus, problem = read_unlabelled(tmp_path, IEMOCAP_LABELS)
    assert problem is None and corpus.splits == {"train": ("train_0",), "test": ("test_0",)}
    assert corpus.dialogues["train_0"].labels.tolist() == [IGNORE_LABEL, 1, 1]
    assert (corpus.dialogues["test_0"].labels == IGNORE_LABEL).all()


def test_nine_items_without_sentences_are_no_meld(save):
    nine = make_nine()
    whole = feature_files.read(save(tuple(nine)))
    nine[6] = None
    corpus = feature_files.read(save(tuple(nine)))
    assert corpus.splits == whole.splits and corpus.dims == whole.dims and corpus.label_names == whole.label_names
    assert all(set(d.sentences) == {""} for d in corpus.dialogues.values())
    meld = [*nine[:5], make_nine()[6], *nine[7:], None]  # without sentiments it is MELD's all the same
    assert set(feature_files.read(save(tuple(meld))).dims) == {"text", "acoustic"}
