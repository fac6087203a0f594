"""The page: what is in it, and that it is made of whatever is there."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_run import SETTINGS, corpus_of, data_of, make_run

import compare
from experiment import insight, page
from experiment.calibration import Calibration, figures
from experiment.insight import Map, gather, read_predictions, resample
from experiment.page import main, write_page
from files import WriteError

IEMOCAP = ("happy", "sad", "neutral", "angry", "excited", "frustrated")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run to look at but not to change."""
    folder = tmp_path_factory.mktemp("run")
    network, dialogues = make_run(folder / "run", corpus_of([9, 7, 12]), file=folder / "data.pkl")
    write_page(folder / "run", seen=gather(folder / "run", network=network, dialogues=dialogues))
    return folder / "run"


@pytest.fixture
def any_map(monkeypatch):
    """The points of a map are of no matter here, and take most of the time that a page does."""
    monkeypatch.setattr(insight, "plane", lambda points: points[:, :2])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run with its data, to be copied."""
    folder = tmp_path_factory.mktemp("small")
    make_run(folder / "run", corpus_of([5, 4]), file=folder / "data.pkl")
    return folder / "run"


def test_the_page_of_a_run_is_the_same_when_it_is_made_again(run, capsys):
    first = re.sub("Made [0-9: -]+", "", (run / "report.html").read_text())
    assert main([str(run)]) == 0
    assert re.sub("Made [0-9: -]+", "", (run / "report.html").read_text()) == first
    assert 'id="problems"' not in first
    for part in ("classes", "confusion", "conversations", "speakers", "maps", "curves", "run"):
        assert f'<section id="{part}"' in first
    assert first.count("<h3>Fused features by") == 2 and "<h3>Last layer by emotion" in first
    assert "Nothing was held out" in first and "best.safetensors (epoch 2 of stage 2" in first
    assert "--fused-channels 16" in first and "SHA-256" in first and "threads 1" in first
    rows = re.findall(r"<bdi>Ses05 [FM]</bdi></th><td>[\d.]+</td><td>[\d.]+ to [\d.]+</td>.*", first)
    assert len(rows) == 2 and all("few: read with care" in row for row in rows)


def test_what_the_script_reads_is_what_the_run_predicted(run):
    data, (table, p, names) = data_of(run / "report.html"), read_predictions(run / "predictions.csv")
    assert tuple(data["classes"]) == names
    assert data["predicted"] == table["predicted"].tolist() and data["label"] == table["label"].tolist()
    assert np.allclose(np.array(data["p"]) / 1000, p, atol=6e-4)
    assert set(data["modalities"]) == {"text", "visual", "acoustic"}
    assert all(1 <= len(each) <= 3 for each in data["neighbours"])
    assert data["text"][0] == "sentence 0 of Ses05_d00"


def test_the_page_of_iemocaps_shape_is_at_most_two_megabytes(tmp_path):
    lengths = [52] * 22 + [53] * 8 + [55]
    sentences = ["What a sentence of the usual length may well be like, I should say, in a play."]
    network, dialogues = make_run(tmp_path / "run", corpus_of(lengths, IEMOCAP, sentences=sentences))
    seen = gather(tmp_path / "run", network=network, dialogues=dialogues, maps=False)
    n = np.linspace(0, 1, 900)
    groups = {kind: (np.arange(900) % 3, ("a", "b", "c")) for kind in ("emotion", "modality")}
    seen.maps = dict.fromkeys(("fused_features", "last_layer"), lambda: Map(np.stack([n, n**2], 1), groups, "made up"))
    made = write_page(tmp_path / "run", seen=seen)
    assert len(data_of(made)["d"]) == 1623
    assert made.stat().st_size < 2_000_000


@pytest.mark.parametrize("name", ["config.json", "report.json", "predictions.csv", "history.csv", "GAN_loss.csv"])
@pytest.mark.parametrize("how", ["missing", "damaged", "empty"])
def test_a_missing_or_damaged_file_leaves_out_its_part_and_is_said(small, any_map, tmp_path, name, how):
    shutil.copytree(small, tmp_path / "run")
    path = tmp_path / "run" / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b'{"a": [1, \xff\x00,' if how == "damaged" else b"")
    text = write_page(tmp_path / "run").read_text()
    assert (name in text.split('id="problems"')[1]) if (name, how) != ("GAN_loss.csv", "missing") else True
    assert ('id="conversations"' in text) == (name != "predictions.csv")
    assert ('id="maps"' in text) == (name not in ("config.json", "predictions.csv"))
    assert 'id="f1"' in text


def test_without_data_and_weights_there_is_a_page(tmp_path):
    make_run(tmp_path / "run", corpus_of([5, 4]), file=tmp_path / "data.pkl")
    (tmp_path / "data.pkl").unlink()
    made = write_page(tmp_path / "run")
    text = made.read_text()
    assert "what decided and maps: " in text and "Left out" in text
    assert data_of(made)["text"][0] == "sentence 0 of Ses05_d00"  # as predictions.csv has it
    shutil.copytree(tmp_path / "run", tmp_path / "plan" / "seed0")
    shutil.copy(tmp_path / "run" / "config.json", tmp_path / "plan")
    assert not any("transcripts" in line for line in gather(tmp_path / "plan").problems)
    assert write_page_of_nothing(tmp_path)


def write_page_of_nothing(tmp_path):
    (tmp_path / "nothing").mkdir()
    return "Left out" in write_page(tmp_path / "nothing").read_text()


def test_a_run_of_an_older_version_has_a_page(tmp_path):
    make_run(tmp_path / "run", corpus_of([5, 4]))
    (tmp_path / "run" / "config.json").write_text('{"flags": {"epochs": 3}, "label_names": 7}')
    text = write_page(tmp_path / "run").read_text()
    assert "older version" in text and 'id="conversations"' in text


@pytest.mark.parametrize(
    "about",
    [
        {"lengths": [6, 5], "names": ("only",)},
        {"lengths": [60, 60], "names": tuple(f"class $x_{i}$" for i in range(300))},
        {"lengths": [130], "speakers": tuple(f"speaker {i}" for i in range(60))},
        {"lengths": [5000]},
        {"lengths": [1], "sentences": [""]},
    ],
    ids=["one class", "300 classes", "60 speakers", "5,000 turns", "empty transcripts"],
)
def test_odd_runs_have_a_page(any_map, tmp_path, about):
    layers = 0 if "speakers" in about else 2  # 7,200 relations take their time
    settings = SETTINGS.replace(classifier__graph_layers=layers)
    network, dialogues = make_run(tmp_path / "run", corpus_of(**about), settings=settings)
    maps = sum(about["lengths"]) < 200
    seen = gather(tmp_path / "run", network=network, dialogues=dialogues, maps=maps)
    made = write_page(tmp_path / "run", seen=seen)
    text = made.read_text()
    assert 'id="conversations"' in text and 'id="problems"' not in text
    assert text.count("<td") < 6000
    assert len(data_of(made)["d"]) == sum(about["lengths"])


def test_a_folder_that_cannot_be_written_gives_a_page_elsewhere(run, monkeypatch, capsys):
    def refused(path):
        raise WriteError(f"{path}: cannot be written (Permission denied); check the folder")

    monkeypatch.setattr(page, "replacing", refused)
    made = write_page(run, seen=gather(run, maps=False))
    assert made.parent != run and "Classes" in made.read_text()
    assert str(made) in capsys.readouterr().err


def test_no_directory_is_said_in_a_line(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_in_the_data_ends_their_element(any_map, tmp_path):
    hostile = ["</script><script>alert(1)</script>", "<!--<script>", "javascript:alert(1)", "\u202eabc", "x" * 10_000]
    names = ("</script>", "a\u202eb", "<img src=x onerror=alert(1)>")
    network, dialogues = make_run(tmp_path / "run", corpus_of([5, 5], names, sentences=hostile))
    made = write_page(tmp_path / "run", seen=gather(tmp_path / "run", network=network, dialogues=dialogues))
    text = made.read_text()
    assert text.count("</script>") == 2 and "<img" not in text and "\u202e" not in text.split('id="data"')[0]
    assert data_of(made)["text"][:5] == hostile


def test_the_bootstrap_knows_a_hand_worked_case():
    drawn = resample(["a", "a", "b"], np.array([0, 1, 1]), np.array([0, 1, 0]), 2)
    # Drawn twice, dialogue a is all right and b all wrong.
    assert set(np.round(drawn.weighted_f1, 3)) == {0.0, 100.0, round(200 / 3, 3)}


def test_several_seeds_have_a_page_of_spread_and_ensemble(any_map, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "plan" / f"seed{seed}", corpus_of([9, 7]), seed=seed)
    seen = gather(tmp_path / "plan")
    each = [read_predictions(tmp_path / "plan" / f"seed{s}" / "predictions.csv")[1] for s in (0, 1)]
    assert np.allclose(seen.probabilities, (each[0] + each[1]) / 2)
    text = write_page(tmp_path / "plan").read_text()
    assert "2 runs" in text and "ensemble" in text and 'id="runs"' in text
    f1 = [report["test"]["weighted_f1"] for report in seen.members.values()]
    assert f'id="f1">{np.mean(f1):.2f}</span> ± {np.std(f1, ddof=1):.2f} ' in text  # single networks, not the ensemble
    assert f"weighted F1 {seen.scores['weighted_f1']:.2f}, 95 % interval over dialogues" in text


def test_utterances_of_one_name_are_not_taken_for_one_on_the_page_of_seeds(tmp_path):
    made = corpus_of([9, 7])
    alike = {i: replace(d, utterances=("yes",) * len(d)) for i, d in made.dialogues.items()}
    for seed in (0, 1):
        make_run(tmp_path / "plan" / f"seed{seed}", replace(made, dialogues=alike), seed=seed)
    seen = gather(tmp_path / "plan")
    each = [read_predictions(tmp_path / "plan" / f"seed{s}" / "predictions.csv")[1] for s in (0, 1)]
    assert np.array_equal(seen.probabilities, (each[0] + each[1]) / 2)


def test_the_page_of_several_runs_says_what_compare_prints(tmp_path, capsys):
    runs, made = [tmp_path / "one", tmp_path / "two"], tmp_path / "both.html"
    for seed, run in enumerate(runs):
        make_run(run, corpus_of([9, 7], sentences=["=1+1", "well"]), seed=seed)
    (tmp_path / "plan").mkdir()
    for seed in (0, 1):
        make_run(tmp_path / "plan" / f"seed{seed}", corpus_of([9, 7]), seed=seed)
    config = json.loads((runs[0] / "config.json").read_text()) | {"plan": {"seeds": [0, 1]}}
    (tmp_path / "plan" / "config.json").write_text(json.dumps(config))
    tables = [read_predictions(run / "predictions.csv")[0] for run in runs]
    tables[1][["utterance", "predicted"]].to_csv(tmp_path / "theirs.csv", index=False)
    flags = ["--predictions", str(tmp_path / "theirs.csv"), "--html", str(made)]
    assert compare.main([*map(str, runs), str(tmp_path / "plan"), *flags]) == 0
    printed, text, data = capsys.readouterr().out, made.read_text(), data_of(made)
    assert data["runs"] == ["one", "two", "plan", "theirs.csv"]
    differ = (tables[0]["predicted"] != tables[1]["predicted"]).to_numpy()
    assert set(tables[0]["utterance"][differ]) <= set(data["name"]) and 0 < len(data["name"]) < 16
    assert set(data["text"]) == {"=1+1", "well"}
    row = next(line for line in printed.splitlines() if line.startswith("weighted F1"))
    for shown in re.findall(r"(\d+\.\d\d) \[", row)[:3]:
        assert f"<td>{shown}</td>" in text
    assert "not a run of ours" in text and "less the first" in text


def test_a_page_of_one_run_or_over_an_input_is_refused(tmp_path, capsys):
    for seed, name in enumerate(("one", "two")):
        make_run(tmp_path / name, corpus_of([5, 4]), seed=seed)
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    before = (tmp_path / "two" / "config.json").read_bytes()
    for flags, why in (
        ([one, "--html", str(tmp_path / "a.html")], "two or more"),
        ([one, two, "--html", f"{two}/config.json"], "would be lost"),
        ([one, two, "--html", str(tmp_path / "none" / "a.html")], "cannot be written"),
    ):
        assert compare.main(flags) == 2
        said = capsys.readouterr().err
        assert why in said and said.count("\n") == 1
    assert (tmp_path / "two" / "config.json").read_bytes() == before


def test_a_page_is_not_written_over_what_it_is_of(any_map, tmp_path, capsys):
    make_run(tmp_path / "run", corpus_of([5, 4]), file=tmp_path / "data.pkl")
    for out in (tmp_path / "run" / "config.json", tmp_path / "data.pkl"):
        before = out.read_bytes()
        assert main([str(tmp_path / "run"), "--out", str(out)]) == 2
        assert "would be lost" in capsys.readouterr().err and out.read_bytes() == before
    for out in (tmp_path / "run" / page.NAME, tmp_path / "page.html"):
        assert [main([str(tmp_path / "run"), "--out", str(out)]) for _ in range(2)] == [0, 0]


def test_utterances_without_a_label_are_left_out_and_said(any_map, tmp_path):
    network, dialogues = make_run(tmp_path / "run", corpus_of([9, 7]))
    path = tmp_path / "run" / "predictions.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[[2, 10], "label"] = ""
    table.assign(confidence="0.5", sentence="said").to_csv(path, index=False)
    made = write_page(tmp_path / "run", seen=gather(tmp_path / "run", network=network, dialogues=dialogues))
    data = data_of(made)
    assert len(data["d"]) == 14 and "2 utterances without a label" in made.read_text()
    assert data["text"][2] == "sentence 3 of Ses05_d00" and set(data["confidence"]) == {500}


def test_a_page_made_again_finds_the_utterances_behind_a_dialogue_without_labels(tmp_path):
    run = tmp_path / "run"
    network, dialogues = make_run(run, corpus_of([4, 6, 9]), file=tmp_path / "data.pkl")
    table = pd.read_csv(run / "predictions.csv", dtype=str)
    table.loc[[*range(4), *range(14, 19)], "label"] = ""
    table.to_csv(run / "predictions.csv", index=False)
    at_hand, again = gather(run, network=network, dialogues=dialogues, maps=False), gather(run, maps=False)
    for m, change in at_hand.modalities.items():
        assert np.allclose(again.modalities[m], change, atol=1e-6) and len(np.unique(change)) > 5
    assert again.table["sentence"].iloc[0] == "sentence 0 of Ses05_d01"
    assert not [line for line in again.problems if "data file" in line]


@pytest.mark.parametrize("temperature", [None, Calibration(1.5, "valid", 3, 40)], ids=["none", "valid"])
def test_what_the_report_says_of_calibration_is_beside_the_diagram(tmp_path, temperature):
    make_run(tmp_path / "run", corpus_of([9, 7]))
    path = tmp_path / "run" / "report.json"
    table, p, _ = read_predictions(tmp_path / "run" / "predictions.csv")
    labels = table["label"].to_numpy()
    said = figures(labels, p, temperature(p) if temperature else None, temperature)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": said}))
    seen = gather(tmp_path / "run", maps=False)
    text = write_page(tmp_path / "run", seen=seen).read_text()
    assert f"Expected calibration error {100 * said['before']['expected_calibration_error']:.1f} %" in text
    rows = re.findall(r"<td>([\d.–]+)</td>", text.split('id="calibration"')[1].split("</table>")[0])
    values = [f"{x:.3f}" for x in said["before"].values()]
    values[0] = f"{100 * said['before']['expected_calibration_error']:.1f}"
    assert rows[::2] == values
    assert (rows[1::2] == ["–"] * 3) == (temperature is None) and ("uncalibrated" in text) == (temperature is None)
    assert ("Temperature 1.50, fitted on 40 utterances of 3 dialogues (valid)" in text) == bool(temperature)


@pytest.mark.parametrize("said", [{"before": {"brier_score": "x"}}, {"before": 3}, [], {"before": {}, "after": []}])
def test_odd_figures_of_calibration_do_not_stop_the_page(tmp_path, said):
    make_run(tmp_path / "run", corpus_of([9, 7]))
    path = tmp_path / "run" / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": said}))
    assert 'id="classes"' in write_page(tmp_path / "run", seen=gather(tmp_path / "run", maps=False)).read_text()


def test_the_page_of_folds_has_every_utterance_once_and_no_ensemble(tmp_path):
    """Each fold tests on dialogues of its own; of seeds of folds, the seeds' probabilities are averaged."""
    for fold, lengths in (("Ses01", [9, 7]), ("Ses02", [5, 6, 4])):
        corpus = corpus_of(lengths)
        named = {i: replace(d, id=i.replace("Ses05", fold)) for i, d in corpus.dialogues.items()}
        splits = {split: tuple(i.replace("Ses05", fold) for i in ids) for split, ids in corpus.splits.items()}
        one = replace(corpus, dialogues={d.id: d for d in named.values()}, splits=splits)
        for seed in (0, 1):
            make_run(tmp_path / "both" / f"seed{seed}" / f"fold{fold}", one, seed=seed)
    folds = tmp_path / "both" / "seed0"
    each = [read_predictions(folds / f"fold{fold}" / "predictions.csv") for fold in ("Ses01", "Ses02")]
    seen = gather(folds)
    assert np.allclose(seen.probabilities, np.concatenate([p for _, p, _ in each]))
    assert list(seen.members) == ["foldSes01", "foldSes02"] and len(seen.table) == 31
    made = write_page(folds, seen=seen)
    text, data = made.read_text(), data_of(made)
    assert "by the run that held it out" in text and "ensemble" not in text
    assert 'id="runs"' in text and text.count("<title>foldSes") == 2
    assert len(data["d"]) == 31 and len(data["dialogues"]) == 5
    assert "Ses01" in text.split('id="speakers"')[1] and "Ses02" in text.split('id="speakers"')[1]
    every = gather(tmp_path / "both")
    other = [read_predictions(tmp_path / "both/seed1" / f"fold{f}" / "predictions.csv")[1] for f in ("Ses01", "Ses02")]
    assert len(every.members) == 4
    assert np.allclose(every.probabilities, (seen.probabilities + np.concatenate(other)) / 2)
    assert "ensemble" in write_page(tmp_path / "both", seen=every).read_text()
