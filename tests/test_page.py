"""The page: what is in it, and that it is made of whatever is there."""

import re

import numpy as np
import pandas as pd
import pytest
from made_run import SETTINGS, corpus_of, data_of, make_run

from experiment import page
from experiment.insight import Map, gather, read_predictions, resample
from experiment.page import comparison_page, main, write_page
from files import WriteError

IEMOCAP = ("happy", "sad", "neutral", "angry", "excited", "frustrated")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run to look at but not to change."""
    folder = tmp_path_factory.mktemp("run")
    network, dialogues = make_run(folder / "run", corpus_of([9, 7, 12]), file=folder / "data.pkl")
    write_page(folder / "run", network=network, dialogues=dialogues)
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
    seen.fused = seen.last_layer = Map(np.stack([n, n**2], 1), groups, "made up")
    made = write_page(tmp_path / "run", seen=seen)
    assert len(data_of(made)["d"]) == 1623
    assert made.stat().st_size < 2_000_000


@pytest.mark.parametrize("name", ["config.json", "report.json", "predictions.csv", "history.csv", "GAN_loss.csv"])
@pytest.mark.parametrize("how", ["missing", "damaged", "empty"])
def test_a_missing_or_damaged_file_leaves_out_its_part_and_is_said(tmp_path, name, how):
    make_run(tmp_path / "run", corpus_of([5, 4]), file=tmp_path / "data.pkl")
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
    text = write_page(tmp_path / "run").read_text()
    assert "what decided" in text and "Left out" in text
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
def test_odd_runs_have_a_page(tmp_path, about):
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


def test_nothing_in_the_data_ends_their_element(tmp_path):
    hostile = ["</script><script>alert(1)</script>", "<!--<script>", "javascript:alert(1)", "\u202eabc", "x" * 10_000]
    names = ("</script>", "a\u202eb", "<img src=x onerror=alert(1)>")
    network, dialogues = make_run(tmp_path / "run", corpus_of([5, 5], names, sentences=hostile))
    made = write_page(tmp_path / "run", network=network, dialogues=dialogues)
    text = made.read_text()
    assert text.count("</script>") == 2 and "<img" not in text and "\u202e" not in text.split('id="data"')[0]
    assert data_of(made)["text"][:5] == hostile


def test_the_bootstrap_knows_a_hand_worked_case():
    drawn = resample(["a", "a", "b"], np.array([0, 1, 1]), np.array([0, 1, 0]), 2)
    # Drawn twice, dialogue a is all right and b all wrong.
    assert set(np.round(drawn.weighted_f1, 3)) == {0.0, 100.0, round(200 / 3, 3)}


def test_several_seeds_have_a_page_of_spread_and_ensemble(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "plan" / f"seed{seed}", corpus_of([9, 7]), seed=seed)
    seen = gather(tmp_path / "plan")
    each = [read_predictions(tmp_path / "plan" / f"seed{s}" / "predictions.csv")[1] for s in (0, 1)]
    assert np.allclose(seen.probabilities, (each[0] + each[1]) / 2)
    text = write_page(tmp_path / "plan").read_text()
    assert "2 runs" in text and "ensemble" in text and 'id="runs"' in text


def test_runs_are_compared_on_what_all_scored(tmp_path):
    for seed, name in ((0, "one"), (1, "two")):
        make_run(tmp_path / name, corpus_of([9, 7]), seed=seed)
    made = comparison_page([tmp_path / "one", tmp_path / "two"], tmp_path / "both.html")
    data = data_of(made)
    said = [read_predictions(tmp_path / name / "predictions.csv")[0]["predicted"] for name in ("one", "two")]
    assert len(data["label"]) == int((said[0] != said[1]).sum())
    assert data["runs"] == ["one", "two"] and "less the first" in made.read_text()


def test_utterances_without_a_label_are_left_out_and_said(tmp_path):
    network, dialogues = make_run(tmp_path / "run", corpus_of([9, 7]))
    path = tmp_path / "run" / "predictions.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[[2, 10], "label"] = ""
    table.assign(confidence="0.5", sentence="said").to_csv(path, index=False)
    made = write_page(tmp_path / "run", network=network, dialogues=dialogues)
    data = data_of(made)
    assert len(data["d"]) == 14 and "2 utterances without a label" in made.read_text()
    assert data["text"][2] == "sentence 3 of Ses05_d00" and set(data["confidence"]) == {500}
