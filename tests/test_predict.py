"""A finished run in use: from Python, from the shell, on files with and without labels, several runs as one."""

import json
import pickle
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

import predict
import train_IEMOCAP
from dataloader import IGNORE_LABEL
from experiment.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability,
    temper,
)
from experiment.prediction import Member, load
from feature_files import read, write_container, write_nine_tuple
from feature_files.container import FORMAT
from files import InputError
from synthetic import synthetic_corpus

DOCS = Path(__file__).parent.parent / "docs" / "predict.md"
DIMS = {"text": 8, "visual": 6, "acoustic": 5}
QUICK = [
    *("--epochs", "2", "--GAN-epochs", "1", "--fused-channels", "16", "--device", "cpu"),
    *("--no-tensorboard", "--no-pictures"),
]


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(train=10, test=4, mean_length=9, dims=DIMS)


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A run of two seeds with validation, and the file it was trained on."""
    folder = tmp_path_factory.mktemp("predict")
    write_nine_tuple(corpus, folder / "small.pkl")
    flags = ["--features", str(folder / "small.pkl"), "--out", str(folder / "run"), "--seeds", "0,1", "--valid", "0.2"]
    assert train_IEMOCAP.main([*flags, *QUICK]) == 0
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(folder / "run" / "seed0", "cpu")


def nine(folder):
    return list(pickle.loads((folder / "small.pkl").read_bytes()))


@pytest.mark.parametrize("page", [DOCS, DOCS.parent.parent / "README.md"], ids=["docs", "README"])
def test_the_three_lines_of_the_docs(folder, monkeypatch, page):
    lines = re.search(r"```python\n(from predict.*?)```", page.read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert len(list(filter(None, lines.splitlines()))) == 3
    shutil.copytree(folder / "run" / "seed0", folder / "runs" / "first", dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    names = {"dialogues": "small.pkl"}
    exec(lines, names)
    assert len(names["table"]) == sum(map(len, read("small.pkl").dialogues.values()))


def test_the_table_says_what_training_said(folder, model, corpus):
    trained = pd.read_csv(folder / "run" / "seed0" / "predictions.csv")
    table = model.predict(folder / "small.pkl")
    both = trained.merge(table, on=["dialogue", "utterance"], suffixes=("", "_now"))
    columns = [f"p_{name}" for name in corpus.label_names]
    assert len(both) == len(table)
    assert np.allclose(both[columns], both[[f"{c}_now" for c in columns]], atol=2e-6)
    assert (both["predicted"] == both["predicted_now"]).all()
    assert (both["emotion"] == np.array(corpus.label_names)[both["predicted"]]).all()
    assert (both["correct"] == (both["label"] == both["predicted"])).all()
    assert np.allclose(both["confidence"], both[columns].max(axis=1), atol=1e-6)
    assert both["turn"].min() == 1 and (both["sentence"] == both["sentence_now"]).all()


def test_paths_corpora_dialogues_and_arrays_are_read_alike(folder, model, corpus):
    columns = [f"p_{name}" for name in corpus.label_names]
    whole = model.predict(folder / "small.pkl")[columns].to_numpy()
    dialogues = list(corpus.dialogues.values())
    assert np.allclose(whole, model.predict(corpus)[columns], atol=1e-6)
    assert np.allclose(whole, model.predict(dialogues)[columns], atol=1e-6)
    arrays = [{**d.features, "speakers": d.speakers} for d in dialogues]
    assert np.allclose(whole, model.predict(arrays)[columns], atol=1e-6)
    one = model.predict(arrays[0])
    assert len(one) == len(dialogues[0]) and "label" not in one


@pytest.mark.parametrize("kind", ["none", "None", "-1", "nan", "missing", "some"])
def test_a_file_without_labels_is_predicted_as_one_with_them(folder, model, tmp_path, kind):
    content = nine(folder)
    labels = content[2]
    first = next(iter(labels))
    other = {
        "none": lambda row: None,
        "None": lambda row: [None] * len(row),
        "-1": lambda row: [-1] * len(row),
        "nan": lambda row: np.full(len(row), np.nan),
        "missing": lambda row: row,
        "some": lambda row: [None, *row[1:]],
    }[kind]
    content[2] = {i: other(row) for i, row in labels.items()}
    if kind == "none":
        content[2] = None
        content[7] = content[8] = None
    if kind == "missing":
        del content[2][first]
    (tmp_path / "new.pkl").write_bytes(pickle.dumps(tuple(content)))
    table = model.predict(tmp_path / "new.pkl").sort_values("utterance")
    known = model.predict(folder / "small.pkl").sort_values("utterance")
    columns = [name for name in known if name.startswith("p_")]
    assert np.allclose(table[columns], known[columns], atol=1e-6)
    if kind in ("missing", "some"):
        lost = table["label"].isna().to_numpy()
        assert 0 < lost.sum() < len(table) and table["correct"].isna().to_numpy().tolist() == lost.tolist()
    else:
        assert "label" not in table


def unlabelled(layout, corpus, folder):
    """The corpus as a file of a layout, without any label."""
    dialogues = corpus.dialogues.values()
    if layout == "dag-erc":
        turns = [
            [
                {"text": said, "speaker": who, "cls": row.tolist()}
                for said, who, row in zip(d.sentences, d.speakers, d.features["text"], strict=True)
            ]
            for d in dialogues
        ]
        path = folder / "test_data_roberta.json.feature"
        path.write_text(json.dumps(turns))
        return path
    if layout == "merbench":
        np.savez(folder / "label.npz", whole_corpus={u: {} for d in dialogues for u in d.utterances})
        for m in DIMS:
            (folder / m).mkdir()
            for d in dialogues:
                for u, row in zip(d.utterances, d.features[m], strict=True):
                    np.save(folder / m / f"{u}.npy", row)
        return folder
    about = {
        "dialogues": [(d.id, len(d)) for d in dialogues],
        **{name: [x for d in dialogues for x in getattr(d, name)] for name in ("speakers", "sentences", "utterances")},
    }
    path = folder / "ours.safetensors"
    tensors = {m: np.concatenate([d.features[m] for d in dialogues]) for m in DIMS}
    save_file(tensors, path, {"format": FORMAT, "corpus": json.dumps(about)})
    return path


@pytest.mark.parametrize("layout", ["dag-erc", "merbench", "gan-ffn"])
def test_layouts_that_train_on_labels_are_predicted_without(folder, model, corpus, tmp_path, capsys, layout):
    path, out = unlabelled(layout, corpus, tmp_path), tmp_path / "p.csv"
    assert predict.main([str(folder / "run" / "seed0"), str(path), "--missing", "mask", "--out", str(out)]) == 0
    said, table = capsys.readouterr(), pd.read_csv(out)
    assert "labels" not in said.err and "Performance" not in said.out and "label" not in table
    assert len(table) == sum(map(len, corpus.dialogues.values()))
    assert ("utterances lack visual" in said.err) == (layout == "dag-erc")
    if layout == "gan-ffn":
        columns = [f"p_{name}" for name in corpus.label_names]
        assert np.allclose(table[columns], model.predict(corpus)[columns], atol=2e-6)


def test_labels_of_other_classes_are_left_out(folder, model, tmp_path):
    content = nine(folder)
    content[2] = {i: [9, *row[1:]] for i, row in content[2].items()}
    (tmp_path / "nine.pkl").write_bytes(pickle.dumps(tuple(content)))
    table = model.predict(tmp_path / "nine.pkl")
    assert "label" not in table and "its labels are left out" in table.attrs["notes"][0]


def test_labels_of_other_classes_in_a_corpus_are_left_out_as_a_file_s_are(model, corpus):
    table = model.predict(replace(corpus, label_names=tuple("abcdef")))
    assert "label" not in table and "its labels are left out" in table.attrs["notes"][0]
    dialogue = next(iter(corpus.dialogues.values()))
    for label in (6, -1):  # of -1 the first class would be made
        with pytest.raises(InputError, match=f"a label {label}, and the run's classes are 0 to 5; give -100"):
            model.predict([replace(dialogue, labels=np.full(len(dialogue), label))])


def test_speakers_may_be_an_array(model, corpus):
    dialogue = next(iter(corpus.dialogues.values()))
    given = {**dialogue.features, "speakers": np.array(dialogue.speakers), "sentences": np.array(dialogue.sentences)}
    assert list(model.predict(given)["speaker"]) == list(dialogue.speakers)


def test_what_is_needed_of_a_run_is_three_files(folder, model, tmp_path):
    files = ("config.json", "checkpoints/best.safetensors", "checkpoints/standardiser.safetensors")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "run" / "seed0" / name, tmp_path / name)
    alone = load(tmp_path, "cpu").predict(folder / "small.pkl")
    pd.testing.assert_frame_equal(alone, model.predict(folder / "small.pkl"))


def test_several_runs_are_averaged(folder, corpus):
    columns = [f"p_{name}" for name in corpus.label_names]
    both = load(folder / "run", "cpu").predict(corpus)[columns].to_numpy()
    each = [load(folder / "run" / f"seed{k}", "cpu").predict(corpus)[columns].to_numpy() for k in (0, 1)]
    assert np.allclose(both, np.mean(each, 0))
    summary = json.loads((folder / "run" / "summary.json").read_text())
    labels = np.concatenate([corpus.dialogues[i].labels for i in corpus.splits["test"]])
    test = load(folder / "run", "cpu").predict(corpus.split("test"))
    assert summary["ensemble"]["accuracy"] == pytest.approx(100 * (test["predicted"] == labels).mean())
    mean = np.mean([each["test"]["per_class"]["sad"]["f1"] for each in summary["seeds"].values()])
    assert summary["per_class_f1"]["sad"]["mean"] == pytest.approx(mean)


def test_evaluate_takes_the_directory_of_several_seeds(folder, tmp_path, capsys):
    out = tmp_path / "scored"
    assert train_IEMOCAP.main(["--evaluate", str(folder / "run"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "The mean of 2 networks' probabilities" in said.out
    page = (out / "report.html").read_text()
    assert "lack something" not in said.err
    assert "uncalibrated" not in page and "Each network has its own temperature" in page
    summary = json.loads((folder / "run" / "summary.json").read_text())
    report = json.loads((out / "report.json").read_text())
    assert report["test"]["accuracy"] == pytest.approx(summary["ensemble"]["accuracy"])


def test_features_from_which_nothing_comes_are_refused_and_not_called_an_emotion(model, corpus, monkeypatch):
    first, second, *_ = corpus.dialogues.values()
    rows = np.full((len(first) + len(second), 6), 1 / 6)
    rows[len(first) :] = np.nan  # what a network makes of numbers that overflow
    monkeypatch.setattr(Member, "probabilities", lambda *_: rows)
    with pytest.raises(
        InputError, match=f"dialogue '{second.id}': features so far from those .* by the run's own encoder"
    ):
        model.predict([first, second])


def test_embedding_is_what_the_classifier_reads(folder, model, corpus):
    embedding = model.embed(corpus)
    count = sum(map(len, corpus.dialogues.values()))
    assert {m: x.shape for m, x in embedding.fused.items()} == dict.fromkeys(DIMS, (count, 16))
    logits = model.members[0].network.classifier.classify[-1](torch.from_numpy(embedding.last_layer))
    want = model.probabilities(list(corpus.dialogues.values()), calibrated=False)
    assert np.allclose(logits.double().softmax(-1), want, atol=1e-5)
    assert len(embedding.utterances) == count
    with pytest.raises(InputError, match="2 networks"):
        load(folder / "run", "cpu").embed(corpus)


def test_using_a_model_changes_nothing_and_threads_may_share_it(model, corpus):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    want = model.predict(corpus)
    found = []
    threads = [threading.Thread(target=lambda: found.append(model.predict(corpus))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(want.equals(table) for table in found)
    assert torch.equal(before, torch.get_rng_state()) and torch.is_grad_enabled()


def test_more_speakers_than_in_training_are_a_note(model, corpus):
    dialogue = next(iter(corpus.dialogues.values()))
    many = replace(dialogue, speakers=tuple("abcdefghijklmnopqrstuvwxyz"[k % 5] for k in range(len(dialogue))))
    table = model.predict([many])
    assert "the run tells 2 apart" in table.attrs["notes"][0]


def test_a_missing_modality_is_refused_or_masked(folder, model, corpus, tmp_path):
    write_nine_tuple(corpus.select_modalities(["text", "acoustic"]), tmp_path / "blind.pkl")
    with pytest.raises(InputError, match=r"visual: no features.*--missing mask"):
        model.predict(tmp_path / "blind.pkl")
    table = model.predict(tmp_path / "blind.pkl", missing="mask")
    assert any("utterances lack visual" in note for note in table.attrs["notes"])
    dark = replace(corpus.dialogues["Ses05_synthetic00"], features={**corpus.dialogues["Ses05_synthetic00"].features})
    dark.features["visual"] = np.full_like(dark.features["visual"], np.nan)
    columns = [name for name in table if name.startswith("p_")]
    masked = table[table["dialogue"] == dark.id][columns]
    assert np.allclose(masked, model.predict([dark], missing="mask")[columns], atol=1e-6)


def test_features_of_other_encoders_are_refused(folder, corpus, tmp_path):
    shutil.copytree(folder / "run" / "seed0", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["features"]["provenance"] = {"encoders": {"text": {"model": "one", "revision": "a"}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    model = load(tmp_path / "run", "cpu")
    for revision, fits in (("a", True), ("b", False)):
        encoders = {"encoders": {"text": {"model": "one", "revision": revision}}}
        write_container(corpus, tmp_path / "new.safetensors", encoders)
        if fits:
            model.predict(tmp_path / "new.safetensors")
        else:
            with pytest.raises(InputError, match="its encoder's revision is 'b', but 'a'"):
                model.predict(tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    "given, says",
    [
        ({"smell": np.zeros((2, 3))}, "no modality"),
        ({"text": np.zeros((2, 8))}, "visual: no features"),
        ({"text": np.zeros((2, 7)), "visual": np.zeros((2, 6)), "acoustic": np.zeros((2, 5))}, "a width of 8"),
        ({"text": np.zeros((2, 8)), "visual": np.zeros((3, 6)), "acoustic": np.zeros((2, 5))}, "as many rows"),
        ({"text": np.full((2, 8), np.inf), "visual": np.zeros((2, 6)), "acoustic": np.zeros((2, 5))}, "infinite"),
        ({"text": np.zeros(8)}, "a row for each utterance"),
        ({"text": "abc"}, "no numbers"),
        ({"text": np.zeros((3, 8)), "speakers": "ann"}, "speakers: a str; give a list of 3 texts"),
        ({"text": np.zeros((3, 8)), "sentences": 5}, "sentences: a int; give a list of 3 texts"),
        ([], "no dialogues"),
        (3, "give a path"),
        ([3], "arrays by modality belong"),
        ("no/such/file.pkl", "no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(model, given, says):
    with pytest.raises(InputError, match=says) as error:
        model.predict(given)
    assert "\n" not in str(error.value)


# The script -----------------------------------------------------------------------------------------------------------


def test_the_script_prints_a_transcript_and_writes_a_table(folder, tmp_path, capsys):
    flags = [str(folder / "run" / "seed0"), str(folder / "small.pkl"), "--out", str(tmp_path / "p.csv")]
    assert predict.main(flags) == 0
    said = capsys.readouterr()
    assert "Ses05_synthetic00\n   1  " in said.out and "\x1b" not in said.out and "F1-score" in said.out
    table = pd.read_csv(tmp_path / "p.csv")
    assert {"dialogue", "utterance", "speaker", "sentence", "emotion", "confidence", "label", "p_happy"} <= set(table)
    assert all(len(x.partition(".")[2]) <= 6 for x in pd.read_csv(tmp_path / "p.csv", dtype=str)["p_happy"])


def test_a_run_that_is_not_finished_is_said(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "run" / "seed0", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"calibration": None}))
    flags = [str(run), str(folder / "small.pkl"), "--quiet", "--out", str(tmp_path / "p.csv")]
    assert predict.main(flags) == 0
    assert "uncalibrated" in capsys.readouterr().err
    (run / "checkpoints" / "last.pt").touch()
    assert predict.main(flags) == 0
    said = capsys.readouterr().err
    assert f"note: {run}: not finished; these are its weights so far" in said and "had no dialogues" not in said


def test_json_lines_and_a_split(folder, corpus, capsys):
    flags = [str(folder / "run"), str(folder / "small.pkl"), "--json", "--split", "test", "--device", "cpu"]
    assert predict.main(flags) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["dialogue"] for row in rows} == set(corpus.splits["test"])
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    assert all(row["emotion"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)


def test_no_emotion_is_white_or_black_on_a_terminal_that_may_be_so():
    names = [f"class {i}" for i in range(9)]
    table = pd.DataFrame({"dialogue": "a", "speaker": "F", "turn": range(1, 10), "emotion": names, "confidence": 0.5})
    table = table.assign(sentence="", **{f"p_{name}": 0.1 for name in names})
    said = "\n".join(predict.transcript(table, colours=True))
    assert said.count("\x1b[0m") == 9 and not re.findall(r"\x1b\[(?:30|37|9[07])m", said)


def test_escape_sequences_never_reach_the_terminal(folder, tmp_path, capsys):
    content = nine(folder)
    bad = "\x1b[31mred\u202eder\x07"
    first = next(iter(content[2]))
    content = [({bad if k == first else k: v for k, v in t.items()} if isinstance(t, dict) else t) for t in content]
    content[6] = {i: [bad] * len(row) for i, row in content[6].items()}
    content[1] = {i: [bad] * len(row) for i, row in content[1].items()}
    content[7] = content[8] = []
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(tuple(content)))
    for more in ([], ["--json"]):
        flags = [str(folder / "run" / "seed0"), str(tmp_path / "bad.pkl"), "--out", str(tmp_path / "p.csv"), *more]
        assert predict.main(flags) == 0
        said = "".join(capsys.readouterr())
        assert not set(said) & {"\x1b", "\u202e", "\x07"} and "u202e" in said


@pytest.mark.parametrize(
    "flags, says",
    [
        (["RUN/nowhere", "FILE"], "cannot be read"),
        (["RUN", "FILE", "--split", "valid"], "no such split; there are: train, test"),
        (["RUN", "FILE", "--out", "no/such/p.csv"], "there is no such folder"),
        (["RUN", "FILE", "--out", "."], "is a directory"),
        (["RUN", "FILE.none"], "no such file"),
        (["RUN"], "give one of FILE"),
        (["RUN", "FILE", "--stream"], "give one of FILE"),
        (["RUN", "--stream", "--json"], "--json goes with a FILE"),
        (["RUN", "FILE", "--strict"], "--strict goes with --stream"),
        (["RUN", "FILE", "--transcribe", "transformers:x"], "--transcribe goes with --recording"),
        (["RUN", "--recording", "a.wav"], "no settings of extract_features.py|a.wav: no such file"),
        (["RUN", "FILE", "--device", "tpu"], "tpu"),
        (["RUN", "--stream"], "--stream: the run reads what comes after.*--causal"),
        (["RUN", "--export", "model.bin"], "neither .onnx nor .pt2"),
        (["RUN", "--export", "no/such/model.onnx"], "a folder that exists"),
    ],
)
def test_wrong_flags_are_one_line(folder, capsys, flags, says):
    names = {"RUN": str(folder / "run" / "seed0"), "FILE": str(folder / "small.pkl")}
    flags = [f.replace("RUN", names["RUN"]).replace("FILE", names["FILE"]) for f in flags]
    try:
        status = predict.main(flags)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and re.search(says, error) and error.count("\n") == 1, error


@pytest.mark.parametrize("out", ["new.pkl", "link", "run/config.json", "run/checkpoints/best.safetensors"])
def test_a_table_is_not_written_over_what_is_read(folder, tmp_path, capsys, out):
    shutil.copytree(folder / "run" / "seed0", tmp_path / "run")
    shutil.copy(folder / "small.pkl", tmp_path / "new.pkl")
    (tmp_path / "link").symlink_to("new.pkl")
    before = (tmp_path / out).read_bytes()
    flags = [str(tmp_path / "run"), str(tmp_path / "new.pkl"), "--device", "cpu", "--out", str(tmp_path / out)]
    assert predict.main(flags) == 2
    error = capsys.readouterr().err
    assert re.search("would be lost|is a file of the run", error) and error.count("\n") == 1
    assert (tmp_path / out).read_bytes() == before


def test_a_table_is_not_written_over_another_run_s(folder, tmp_path, capsys):
    shutil.copytree(folder / "run" / "seed0", tmp_path / "other")
    out = tmp_path / "other" / "predictions.csv"
    before = out.read_bytes()
    assert predict.main([str(folder / "run" / "seed0"), str(folder / "small.pkl"), "--out", str(out)]) == 2
    assert "is a file of the run" in capsys.readouterr().err and out.read_bytes() == before


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda run: (run / "checkpoints" / "best.safetensors").unlink(), "best.safetensors: cannot be read"),
        (lambda run: (run / "checkpoints" / "best.safetensors").write_bytes(b"x" * 99), "cannot be read"),
        (lambda run: (run / "checkpoints" / "standardiser.safetensors").unlink(), "cannot be read"),
        (lambda run: (run / "config.json").write_text("{"), "not valid JSON"),
        (
            lambda run: edit(run, corpus={"dims": {"text": 10**9}, "label_names": ["a"], "num_speakers": 2}),
            "widths are whole numbers",
        ),
        (lambda run: edit(run, corpus={"dims": {"text": 9}, "label_names": ["a"], "num_speakers": 2}), "other network"),
        (lambda run: edit(run, calibration={"temperature": -1}), "no temperature"),
        (lambda run: edit(run, calibration=[3]), "no temperature"),
        (lambda run: edit(run, plan={"seeds": [0], "folds": "sessions"}), "several folds"),
        (lambda run: edit(run, plan={"seeds": [7]}), "no run of seed 7 yet"),
    ],
)
def test_a_damaged_run_is_one_line(folder, tmp_path, capsys, change, says):
    shutil.copytree(folder / "run" / "seed0", tmp_path / "run")
    change(tmp_path / "run")
    assert predict.main([str(tmp_path / "run"), str(folder / "small.pkl")]) == 2
    error = capsys.readouterr().err
    assert says.replace("other network", "another network") in error and error.count("\n") == 1


def edit(run, **fields):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, **fields}))


# Calibration ----------------------------------------------------------------------------------------------------------


def sure(n=3000, classes=4, factor=3.0):
    """Labels, and probabilities whose logits are that many times too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, classes))
    right = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in right])
    return labels, temper(right, 1 / factor)


def test_the_temperature_undoes_what_made_a_network_too_sure():
    labels, probabilities = sure()
    temperature = fit_temperature(labels, probabilities)
    assert temperature == pytest.approx(3, rel=0.1)
    calibrated = temper(probabilities, temperature)
    assert (calibrated.argmax(1) == probabilities.argmax(1)).all()
    before, after = (expected_calibration_error(labels, p) for p in (probabilities, calibrated))
    assert after < 0.04 < before


def test_calibration_error_and_brier_score_are_those_of_the_libraries():
    labels, probabilities = sure(500)
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    theirs = metrics.multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=4, n_bins=15, norm="l1"
    )
    assert expected_calibration_error(labels, probabilities) == pytest.approx(theirs.item(), abs=1e-6)
    from sklearn.metrics import brier_score_loss

    theirs = brier_score_loss(labels, probabilities, scale_by_half=False, labels=range(4))
    assert brier_score(labels, probabilities) == pytest.approx(theirs)
    assert reliability(labels, probabilities)["utterances"].sum() == 500
    assert fit_temperature(np.full(3, IGNORE_LABEL), probabilities[:3]) == 1


def test_the_report_says_how_calibrated_the_run_is(folder):
    report = json.loads((folder / "run" / "seed0" / "report.json").read_text())["calibration"]
    assert report["fitted_on"] == "valid" and report["dialogues"] == 2 and report["temperature"] > 0
    for when in ("before", "after"):
        assert set(report[when]) == {"expected_calibration_error", "brier_score", "negative_log_likelihood"}
    assert load(folder / "run", "cpu").calibrated


def test_without_held_out_dialogues_probabilities_are_uncalibrated_unless_folds_are_asked_for(folder, tmp_path, capsys):
    flags = ["--features", str(folder / "small.pkl"), *QUICK, "--epochs", "1", "--GAN-epochs", "0"]
    assert train_IEMOCAP.main([*flags, "--out", str(tmp_path / "plain")]) == 0
    assert not load(tmp_path / "plain", "cpu").calibrated
    assert json.loads((tmp_path / "plain" / "report.json").read_text())["calibration"]["after"] is None
    assert predict.main([str(tmp_path / "plain"), str(folder / "small.pkl"), "--json"]) == 0
    assert "uncalibrated" in capsys.readouterr().err
    assert train_IEMOCAP.main([*flags, "--calibrate", "2", "--out", str(tmp_path / "folds")]) == 0
    about = json.loads((tmp_path / "folds" / "config.json").read_text())["calibration"]
    assert about["fitted_on"] == "out of fold" and about["dialogues"] == 10
    assert load(tmp_path / "folds", "cpu").calibrated and not (tmp_path / "folds" / "calibration").exists()
    dialogues = load(tmp_path / "plain", "cpu").read(folder / "small.pkl").dialogues
    first, second = (load(tmp_path / n, "cpu").probabilities(dialogues, calibrated=False) for n in ("plain", "folds"))
    assert np.array_equal(first, second)  # the weights are those of a run without


def test_folds_that_cannot_be_had_are_refused_before_training(folder, tmp_path, capsys):
    flags = ["--features", str(folder / "small.pkl"), "--out", str(tmp_path / "run"), *QUICK]
    for more, says in (
        (["--calibrate", "500"], "--calibrate 500: there are only 10 dialogues"),
        (["--calibrate", "1"], "out of range"),
        (["--calibrate", "2", "--use-trained-GAN", str(folder / "run" / "seed0")], "leave one of them out"),
    ):
        try:
            status = train_IEMOCAP.main([*flags, *more])
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and says in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_folds_are_pooled_and_seeds_of_folds_make_an_ensemble(folder, tmp_path, capsys):
    flags = ["--features", str(folder / "small.pkl"), "--out", str(tmp_path / "run"), *QUICK, "--epochs", "1"]
    more = ["--folds", "2", "--seeds", "0,1", "--GAN-epochs", "0", "--report-best-test"]
    assert train_IEMOCAP.main([*flags, *more]) == 0
    said = capsys.readouterr().out
    above = json.loads((tmp_path / "run" / "summary.json").read_text())
    seed = json.loads((tmp_path / "run" / "seed0" / "summary.json").read_text())
    folds = [json.loads((tmp_path / "run" / "seed0" / f"fold{k}of2" / "report.json").read_text()) for k in (1, 2)]
    summed = np.sum([report["test"]["confusion_matrix"] for report in folds], 0)
    assert seed["pooled"]["confusion_matrix"] == summed.tolist()
    assert seed["chosen_on_test"]["weighted_f1"] == pytest.approx(
        np.mean([report["chosen_on_test"]["weighted_f1"] for report in folds])
    )
    assert sum(above["ensemble"]["support"]) == summed.sum() and "per_class_f1" in above
    assert "Pooled over" in said and "an ensemble, not a single network" in said and "Chosen on test" in said
    assert re.search(r"\nSeed 0:\n2 folds, .*\nSeed 1:\n2 folds, .*\n2 seeds, ", said, re.DOTALL)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["RUN", "FILE", "--speakers", "2"], "--speakers goes with --recording; leave it out with FILE"),
        (["RUN", "--manifest", "FILE", "--transcript", "FILE"], "--transcript goes with --recording"),
        (["RUN", "--stream", "--cache", "FOLDER"], "--cache goes with --recording and --manifest"),
        (["RUN", "--recording", "FILE", "--transcript", "FILE", "--transcribe", "a:b"], "with --transcript;"),
    ],
)
def test_flags_of_recordings_are_refused_where_they_do_nothing(capsys, flags, says):
    with pytest.raises(SystemExit) as stop:
        predict.main(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.count("\n") == 1


def test_the_other_uses_of_a_run_that_is_not_finished_say_so(folder, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(folder / "run" / "seed0", tmp_path / "run")
    (run / "checkpoints" / "last.pt").touch()
    note = f"note: {run}: not finished; these are its weights so far; finish it with --resume\n"
    assert train_IEMOCAP.main(["--evaluate", str(run), "--device", "cpu"]) == 0
    assert note in capsys.readouterr().err
    for flags in (["--stream"], ["--export", "model.onnx"]):
        monkeypatch.setattr("experiment.export.export", lambda *_: "written")
        predict.main([str(run), *flags, "--device", "cpu"])
        assert capsys.readouterr().err.startswith(note)
