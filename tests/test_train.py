"""The script end to end, on small synthetic files: what it writes, scores, resumes and exports."""

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from tensorboardX.proto.event_pb2 import Event

import feature_files
import model
import train_IEMOCAP
from dataloader import class_weights, collate
from experiment import insight
from experiment.prediction import load
from experiment.run import Run
from experiment.settings import Settings
from feature_files import read, write_nine_tuple
from synthetic import synthetic_corpus

OUTPUTS = (Path(__file__).parent.parent / "docs" / "outputs.md").read_text(encoding="utf-8")
DRAWN = ["--epochs", "2", "--GAN-epochs", "2", "--valid", "0.1", "--fused-channels", "16", "--device", "cpu"]
LOGGED = [*DRAWN, "--no-pictures"]
QUICK = [*LOGGED, "--no-tensorboard"]
BRIEF = [*QUICK, "--epochs", "1", "--GAN-epochs", "1"]  # where no other run is compared with
PICTURES = [
    *("GAN_loss.png", "fusion_losses.png", "training_curves.png", "confusion_matrix.png", "per_class_f1.png"),
    *("reliability_diagram.png", "emotion_timeline.png", "fused_features.png", "last_layer.png"),
]


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(train=20, test=4, mean_length=10, dims={"text": 8, "visual": 6, "acoustic": 5})


@pytest.fixture(scope="module")
def features(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "small.pkl"
    write_nine_tuple(corpus, path)
    return path


@pytest.fixture(scope="module")
def finished(features, tmp_path_factory):
    """A finished run, to look at but not to change."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert train_IEMOCAP.main(["--features", str(features), "--out", str(directory), *DRAWN]) == 0
    return directory


def weights(directory, name="best"):
    return load_file(directory / "checkpoints" / f"{name}.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def curves(directory):
    """History without durations, the one thing in which two equal runs may differ."""
    return [pd.read_csv(directory / f).drop(columns="seconds") for f in ("GAN_loss.csv", "history.csv")]


def scalars(directory):
    """(tag, step) of every value in TensorBoard's event files."""
    found = []
    for path in sorted((directory / "tensorboard").glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(value.tag, event.step) for value in event.summary.value]
            data = data[12 + size + 4 :]
    return found


def test_a_run_leaves_what_the_readme_lists(finished):
    names = {p.name for p in finished.iterdir()}
    assert names == {
        *PICTURES,
        *("config.json", "report.txt", "report.json", "report.html", "predictions.csv", "GAN_loss.csv", "history.csv"),
        *("tensorboard", "checkpoints"),
    }
    assert all((finished / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    losses = pd.read_csv(finished / "GAN_loss.csv")
    assert pd.read_csv(finished / "GAN_loss.csv", dtype=str).map(len).max(axis=None) <= len("-1.2345678e-05")
    assert losses["epoch"].tolist() == [1, 2]
    six = [f"{m}_{p}_loss" for m in ("acoustic", "visual", "text") for p in "GD"]
    assert np.isfinite(losses[six]).all(axis=None)
    tags = scalars(finished)
    assert len(tags) == len(set(tags))
    groups = {"G": "stage1_generators", "D": "stage1_discriminators"}
    six = [f"{groups[p]}/{m}" for m in ("acoustic", "visual", "text") for p in "GD"]
    assert {(name, step) for name in six for step in (1, 2)} <= set(tags)


def test_the_docs_name_every_key_and_column(finished):
    report, config = (json.loads((finished / f"{name}.json").read_text()) for name in ("report", "config"))
    keys = [*report, *report["test"], *report["calibration"], *report["fusion"], *report["seconds"]]
    keys += [*config, *config["versions"]]
    columns = [c for name in ("predictions", "history", "GAN_loss") for c in pd.read_csv(finished / f"{name}.csv")]
    named = [c for c in columns if not c.startswith(("p_", "valid_f1_", "visual_", "acoustic_"))]
    assert [name for name in [*keys, *named] if f"`{name}`" not in OUTPUTS] == []


def test_the_report_is_what_the_predictions_say(finished, corpus):
    report = json.loads((finished / "report.json").read_text())
    table = pd.read_csv(finished / "predictions.csv")
    assert set(table["split"]) == {"train", "valid", "test"}
    assert len(table) == sum(map(len, corpus.dialogues.values()))
    probabilities = table[[f"p_{name}" for name in corpus.label_names]].to_numpy()
    assert np.allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == table["predicted"]).all()
    for split in ("test", "valid"):
        part = table[table["split"] == split]
        assert report[split]["weighted_f1"] == pytest.approx(
            100 * f1_score(part["label"], part["predicted"], average="weighted", zero_division=0)
        )
        assert report[split]["macro_f1"] == pytest.approx(
            100 * f1_score(part["label"], part["predicted"], average="macro", zero_division=0)
        )
        assert report[split]["accuracy"] == pytest.approx(100 * accuracy_score(part["label"], part["predicted"]))
        expected = confusion_matrix(part["label"], part["predicted"], labels=range(6)).tolist()
        assert report[split]["confusion_matrix"] == expected
        assert sum(report[split]["support"]) == len(part)
    assert {"best_epoch", "seconds", "parameters"} <= report.keys()
    assert {"adversarial", "classifier", "checkpoints", "total"} == report["seconds"].keys()


def test_the_printed_report_has_the_lines_the_field_expects(finished, corpus):
    lines = (finished / "report.txt").read_text().splitlines()
    f1 = json.loads((finished / "report.json").read_text())["test"]["weighted_f1"]
    assert lines[0] == "Test performance.."
    assert lines[1].startswith("Loss ")
    assert lines[1].endswith(f"F1-score {f1:.2f}")
    assert all(any(line.split()[:1] == [name] for line in lines) for name in corpus.label_names)


def test_config_says_what_was_run(finished, features):
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["classifier"]["epochs"] == 2
    assert config["settings"]["classifier"]["lr"] == Settings().classifier.lr
    assert config["features"] == {"file": str(features), "sha256": read(features).sha256}
    assert config["seed"] == 0


def test_the_same_command_gives_the_same_bits_with_and_without_tensorboard_and_pictures(finished, features, tmp_path):
    assert train_IEMOCAP.main(["--features", str(features), "--out", str(tmp_path / "b"), *QUICK]) == 0
    assert not (tmp_path / "b" / "tensorboard").exists() and not list((tmp_path / "b").glob("*.png"))
    assert same(weights(finished), weights(tmp_path / "b"))
    assert (finished / "predictions.csv").read_bytes() == (tmp_path / "b" / "predictions.csv").read_bytes()


def test_labels_of_test_dialogues_cannot_reach_the_weights(finished, corpus, tmp_path):
    test = set(corpus.splits["test"])
    rolled = {i: replace(d, labels=np.roll(d.labels, 1)) if i in test else d for i, d in corpus.dialogues.items()}
    write_nine_tuple(replace(corpus, dialogues=rolled), tmp_path / "rolled.pkl")
    assert train_IEMOCAP.main(["--features", str(tmp_path / "rolled.pkl"), "--out", str(tmp_path / "b"), *QUICK]) == 0
    assert same(weights(finished), weights(tmp_path / "b"))


def test_scoring_a_finished_run_again_gives_the_same_numbers(finished, tmp_path, capsys):
    assert train_IEMOCAP.main(["--evaluate", str(finished), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.strip() == (finished / "report.txt").read_text().strip()
    first, again = (json.loads((d / "report.json").read_text()) for d in (finished, tmp_path / "again"))
    assert (first["test"], first["valid"]) == (again["test"], again["valid"])
    assert (finished / "predictions.csv").read_bytes() == (tmp_path / "again" / "predictions.csv").read_bytes()


def test_scoring_on_a_file_of_another_shape_is_refused(finished, tmp_path, capsys):
    write_nine_tuple(
        synthetic_corpus(train=4, test=1, dims={"text": 9, "visual": 6, "acoustic": 5}), tmp_path / "x.pkl"
    )
    assert train_IEMOCAP.main(["--evaluate", str(finished), "--features", str(tmp_path / "x.pkl")]) == 2
    assert "same shape" in capsys.readouterr().err


def test_fused_features_load_as_the_field_loads_them(finished, corpus, tmp_path):
    fused = tmp_path / "fused.pkl"
    assert train_IEMOCAP.main(["--evaluate", str(finished), "--export-fused", str(fused)]) == 0
    # As DialogueRNN's and DialogueGCN's dataloaders do.
    ids, speakers, labels, text, audio, visual, sentences, train, test = pickle.load(
        fused.open("rb"), encoding="latin1"
    )
    assert (train, test) == (list(corpus.splits["train"]), list(corpus.splits["test"]))
    for i, dialogue in corpus.dialogues.items():
        assert (ids[i], sentences[i]) == (list(dialogue.utterances), list(dialogue.sentences))
        assert (speakers[i], labels[i]) == (list(dialogue.speakers), dialogue.labels.tolist())
        for modality in (text, audio, visual):
            tensor = torch.FloatTensor(np.array(modality[i]))
            assert tensor.shape == (len(dialogue), model.SHARED_CHANNELS + 2 * max(corpus.dims.values()))
            assert tensor.isfinite().all()


def test_exported_features_say_how_they_were_made(finished, corpus, tmp_path, capsys):
    config = json.loads((finished / "config.json").read_text())
    for name in ("fused.pkl", "fused.safetensors"):
        assert train_IEMOCAP.main(["--evaluate", str(finished), "--export-fused", str(tmp_path / name)]) == 0
    beside = json.loads((tmp_path / "fused.pkl.json").read_text())
    assert beside["features"] == config["features"] and beside["settings"] == config["settings"]["fusion"]
    assert "no label was used" in beside["fused_features"]
    other, ours = read(tmp_path / "fused.pkl"), read(tmp_path / "fused.safetensors")
    assert ours.provenance == beside
    for i in corpus.dialogues:
        for m, x in ours.dialogues[i].features.items():
            assert np.array_equal(x, other.dialogues[i].features[m])
    capsys.readouterr()
    assert feature_files.main(["inspect", str(tmp_path / "fused.safetensors")]) == 0
    assert "no label was used" in capsys.readouterr().out


def test_exported_features_are_shared_channels_and_the_modality_s_own(finished, corpus, tmp_path):
    """All are normalised over the training utterances, so that neither mean nor size tells the modality."""
    assert train_IEMOCAP.main(["--evaluate", str(finished), "--export-fused", str(tmp_path / "fused.pkl")]) == 0
    fused, learnt = read(tmp_path / "fused.pkl"), json.loads((finished / "config.json").read_text())["splits"]["train"]
    for m, width in corpus.dims.items():
        rows, raw = (np.concatenate([c.dialogues[i].features[m] for i in learnt]) for c in (fused, corpus))
        speaker = np.concatenate([[f"{i} {s}" for s in corpus.dialogues[i].speakers] for i in learnt])
        shared, own, relative, rest = np.split(rows, model.SHARED_CHANNELS + width * np.arange(3), axis=1)
        assert np.abs(rows.mean(0)).max() < 0.01
        assert np.allclose(shared.std(0), 1, atol=0.01)
        assert np.allclose(own, model.OWN_SCALE * (raw - raw.mean(0)) / raw.std(0), atol=1e-3)
        means = pd.DataFrame(own).groupby(speaker).transform("mean")
        assert np.allclose(relative, own - means, atol=1e-5)
        assert not rest.any()


def test_exported_features_of_stage_2_are_what_the_classifier_reads(finished, corpus, tmp_path, capsys):
    export = ["--evaluate", str(finished), "--export-fused", str(tmp_path / "fused.pkl"), "--export-stage", "2"]
    assert train_IEMOCAP.main(export) == 0
    assert "labels of the training dialogues were used" in capsys.readouterr().out
    assert "too good" in json.loads((tmp_path / "fused.pkl.json").read_text())["fused_features"]
    member = load(finished).members[0]
    dialogue = corpus.split("test")[0]
    exported = read(tmp_path / "fused.pkl").dialogues[dialogue.id].features
    batch = collate([member.standardise(dialogue)])
    summed = torch.from_numpy(sum(exported.values())).unsqueeze(0)
    with torch.no_grad():
        logits = member.network.eval().classifier(summed, batch.mask, batch.speakers)
        assert torch.allclose(logits, member.network(batch), atol=1e-5)


def test_fused_features_depend_on_no_label(finished, corpus, tmp_path, capsys):
    rolled = {i: replace(d, labels=np.roll(d.labels, 1)) for i, d in corpus.dialogues.items()}
    write_nine_tuple(replace(corpus, dialogues=rolled), tmp_path / "rolled.pkl")
    assert train_IEMOCAP.main(["--evaluate", str(finished), "--export-fused", str(tmp_path / "a.pkl")]) == 0
    capsys.readouterr()
    out = ["--out", str(tmp_path / "b"), "--export-fused", str(tmp_path / "b.pkl")]
    assert train_IEMOCAP.main(["--features", str(tmp_path / "rolled.pkl"), *out, *QUICK]) == 0
    assert "no label was used" in capsys.readouterr().out
    assert not same(weights(finished), weights(tmp_path / "b"))  # of stage 2, which has seen the labels
    a, b = read(tmp_path / "a.pkl"), read(tmp_path / "b.pkl")
    for i in corpus.dialogues:
        for m in a.dims:
            assert np.array_equal(a.dialogues[i].features[m], b.dialogues[i].features[m])


@pytest.mark.parametrize("stage", ["adversarial", "classifier"])
def test_ctrl_c_stops_after_the_step_and_resume_ends_as_if_nothing_had_been(
    stage, finished, features, tmp_path, monkeypatch, capsys
):
    log = Run.log

    def log_then_interrupt(run, at, row):
        log(run, at, row)
        if (at, row["epoch"]) == (stage, 1):
            os.kill(os.getpid(), signal.SIGINT)

    directory = tmp_path / "b"
    monkeypatch.setattr(insight, "plane", lambda points: points[:, :2])  # a map is no curve, and takes a second
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_then_interrupt)
        assert train_IEMOCAP.main(["--features", str(features), "--out", str(directory), *LOGGED]) == 130
    said = capsys.readouterr()
    assert f"--resume {directory}" in said.err
    assert ("Interrupted at epoch 2 of stage 2" in said.out) == (stage == "classifier")
    assert train_IEMOCAP.main(["--out", str(directory), "--resume"]) == 0
    assert same(weights(finished), weights(directory))
    assert all(a.equals(b) for a, b in zip(curves(finished), curves(directory), strict=True))
    assert (finished / "predictions.csv").read_bytes() == (directory / "predictions.csv").read_bytes()
    assert sorted(scalars(finished)) == sorted(scalars(directory))
    assert "interrupted" not in json.loads((directory / "report.json").read_text())


def test_resume_refuses_other_flags_and_other_data(finished, corpus, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_IEMOCAP.main(["--resume", str(finished), "--lr", "0.5"])
    assert stop.value.code == 2
    assert "--lr 0.5" in capsys.readouterr().err
    write_nine_tuple(replace(corpus, splits={**corpus.splits, "test": corpus.splits["test"][1:]}), tmp_path / "x.pkl")
    assert train_IEMOCAP.main(["--resume", str(finished), "--features", str(tmp_path / "x.pkl")]) == 2
    assert "not the data" in capsys.readouterr().err


def test_several_seeds_are_summarised(finished, features, tmp_path, capsys):
    command = ["--features", str(features), "--out", str(tmp_path / "b"), *QUICK, "--seeds", "0,1"]
    assert train_IEMOCAP.main(command) == 0
    assert "±" in capsys.readouterr().out
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    each = [summary["seeds"][seed]["test"]["weighted_f1"] for seed in ("0", "1")]
    assert summary["mean"]["test"]["weighted_f1"] == pytest.approx(np.mean(each))
    assert summary["standard_deviation"]["test"]["weighted_f1"] == pytest.approx(np.std(each, ddof=1))
    low, high = summary["interval_95"]["test"]["weighted_f1"]
    half = 12.706 * np.std(each, ddof=1) / np.sqrt(2)  # Student's t of one degree of freedom
    assert [low, high] == pytest.approx([np.mean(each) - half, np.mean(each) + half], rel=1e-3)
    assert [key for key in summary if f"`{key}`" not in OUTPUTS] == []
    assert same(weights(finished), weights(tmp_path / "b" / "seed0"))
    assert not same(weights(finished), weights(tmp_path / "b" / "seed1"))
    assert train_IEMOCAP.main(["--evaluate", str(tmp_path / "b")]) == 0  # all of them as one
    assert "F1-score" in capsys.readouterr().out
    before = (tmp_path / "b" / "seed1" / "report.json").read_bytes()
    assert train_IEMOCAP.main(["--resume", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "seed1" / "report.json").read_bytes() == before


def test_without_validation_every_training_dialogue_teaches_and_the_last_epoch_is_kept(features, tmp_path):
    run = ["--features", str(features), *QUICK, "--GAN-epochs", "0", "--valid", "0", "--epochs", "3"]
    assert train_IEMOCAP.main([*run, "--out", str(tmp_path / "a")]) == 0
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["valid"] is None
    assert report["best_epoch"] == 3
    splits = pd.read_csv(tmp_path / "a" / "predictions.csv").groupby("split")["dialogue"].nunique()
    assert splits.to_dict() == {"train": 20, "test": 4}
    assert train_IEMOCAP.main(["--evaluate", str(tmp_path / "a")]) == 0


def test_best_test_epoch_is_shown_only_when_asked_for_and_changes_no_weight(finished, features, tmp_path, capsys):
    assert "test_weighted_f1" not in pd.read_csv(finished / "history.csv")
    run = ["--features", str(features), *QUICK, "--out", str(tmp_path / "a"), "--report-best-test"]
    assert train_IEMOCAP.main(run) == 0
    assert "Chosen on test, as much of the field reports" in capsys.readouterr().out
    best = json.loads((tmp_path / "a" / "report.json").read_text())["chosen_on_test"]
    history = pd.read_csv(tmp_path / "a" / "history.csv")
    assert best["weighted_f1"] == pytest.approx(history["test_weighted_f1"].max(), rel=1e-5)
    assert same(weights(finished), weights(tmp_path / "a"))


def test_sessions_are_left_out_in_turn(corpus, tmp_path, capsys):
    few = [i for i in corpus.splits["train"] if not i.startswith("Ses04")]
    write_nine_tuple(replace(corpus, splits={**corpus.splits, "train": tuple(few)}), tmp_path / "few.pkl")
    out = tmp_path / "a"
    run = ["--features", str(tmp_path / "few.pkl"), *BRIEF, "--GAN-epochs", "0", "--out", str(out), "--seeds", "0,1"]
    assert train_IEMOCAP.main([*run, "--folds", "sessions", "--folds-over", "train"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    for seed in ("0", "1"):
        folds = json.loads((out / f"seed{seed}" / "summary.json").read_text())["folds"]
        assert list(folds) == ["Ses01", "Ses02", "Ses03"]
        mean = np.mean([fold["test"]["weighted_f1"] for fold in folds.values()])
        assert summary["seeds"][seed]["test"]["weighted_f1"] == pytest.approx(mean)
    fold = out / "seed0" / "foldSes02"
    sessions = pd.read_csv(fold / "predictions.csv").assign(session=lambda rows: rows["dialogue"].str[:5])
    assert set(sessions.loc[sessions["split"] == "test", "session"]) == {"Ses02"}
    assert set(sessions.loc[sessions["split"] != "test", "session"]) == {"Ses01", "Ses03"}
    capsys.readouterr()
    assert train_IEMOCAP.main(["--evaluate", str(fold)]) == 0
    assert capsys.readouterr().out.strip() == (fold / "report.txt").read_text().strip()


def test_stage_1_is_taken_from_an_earlier_run_and_trained_further(finished, features, tmp_path):
    start = ["--features", str(features), *BRIEF, "--use-trained-GAN", str(finished)]
    assert train_IEMOCAP.main([*start, "--out", str(tmp_path / "b")]) == 0
    assert same(weights(finished, "fusion"), weights(tmp_path / "b", "fusion"))
    assert not (tmp_path / "b" / "GAN_loss.csv").exists()
    assert train_IEMOCAP.main([*start, "--out", str(tmp_path / "c"), "--continue-train-GAN-step", "1"]) == 0
    assert not same(weights(finished, "fusion"), weights(tmp_path / "c", "fusion"))
    assert pd.read_csv(tmp_path / "c" / "GAN_loss.csv")["epoch"].tolist() == [1]


def test_two_modalities_play_and_one_skips_stage_1(features, tmp_path, capsys):
    run = ["--features", str(features), *BRIEF]
    assert train_IEMOCAP.main([*run, "--modalities", "text,acoustic", "--out", str(tmp_path / "two")]) == 0
    assert "visual_G_loss" not in pd.read_csv(tmp_path / "two" / "GAN_loss.csv")
    capsys.readouterr()
    assert train_IEMOCAP.main([*run, "--modalities", "text", "--out", str(tmp_path / "one")]) == 0
    assert "stage 1 is skipped" in capsys.readouterr().out
    assert not (tmp_path / "one" / "GAN_loss.png").exists()


def test_without_data_the_script_says_where_it_goes_and_how_to_try(capsys):
    assert train_IEMOCAP.main([]) == 2
    said = capsys.readouterr().err
    assert "IEMOCAP_features/" in said
    assert "--demo" in said


def test_class_weights_are_one_over_class_shares():
    corpus = synthetic_corpus(train=8, test=1, dims={"text": 4})
    weight = class_weights(corpus.split("train"), 7).numpy()
    counts = np.bincount(np.concatenate([d.labels for d in corpus.split("train")]), minlength=7)
    assert weight[6] == 0
    assert np.allclose(weight[:6] * counts[:6], counts.sum() / 6)
