import json
from dataclasses import replace

import fusion  # of benchmarks/
import numpy as np
import pandas as pd
import pytest
from small import small_corpus, write

QUICK = ["--GAN-epochs", "2", "--epochs", "1", "--fused-channels", "16", "--batch-size", "6"]


def related(corpus, noise):
    """The corpus with acoustic features that are a linear map of the text's, and noise."""
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(8, 5))
    dialogues = {}
    for i, d in corpus.dialogues.items():
        text = rng.normal(size=(len(d), 8)).astype(np.float32)
        acoustic = (text @ turn + noise * rng.normal(size=(len(d), 5))).astype(np.float32)
        dialogues[i] = replace(d, features={"text": text, "acoustic": acoustic})
    return replace(corpus, dialogues=dialogues)


@pytest.mark.parametrize(("noise", "least", "most"), [(0.01, 95, 100), (100.0, 0, 30)])
def test_cca_finds_pairs_where_modalities_are_linearly_related_and_nowhere_else(noise, least, most):
    data = fusion.common.standardised(related(small_corpus(train=12, test=6), noise))
    found = fusion.cca_retrieval(data["train"], data["test"], "text", "acoustic")
    assert least <= found <= most


def test_the_table_has_every_measure_and_goes_on_where_it_was_stopped(tmp_path, capsys):
    path = write(small_corpus(train=6, test=3), tmp_path / "small.pkl")
    run = ["--features", str(path), "--device", "cpu", "--out", str(tmp_path / "out"), "--seeds", "0"]
    assert fusion.main([*run, "--parts", "quality", "--", *QUICK]) == 0
    table = pd.read_csv(tmp_path / "out" / "fusion.csv").set_index("measure")["value"]
    wanted = {"linear probe, %", "probe, chance", "retrieval, chance", "loss of G, text"}
    wanted |= {f"discriminator {m}>{k}, %" for m, k in (("text", "acoustic"), ("visual", "text"))}
    wanted |= {f"retrieval text>visual{how}, %" for how in ("", " by CCA")}
    assert wanted <= set(table.index) and table.between(0, 100).all()
    assert "| linear probe, % |" in capsys.readouterr().out and (tmp_path / "out" / "fusion.png").exists()
    lines = (tmp_path / "out" / "runs.jsonl").read_text()
    assert fusion.main([*run, "--parts", "quality", "--", *QUICK]) == 0
    assert (tmp_path / "out" / "runs.jsonl").read_text() == lines
    assert fusion.main([*run, "--parts", "quality", "--", *QUICK, "--batch-size", "3"]) == 2
    assert "other data, folds or flags" in capsys.readouterr().err


def test_other_networks_and_one_modality_alone(tmp_path):
    path = write(small_corpus(train=6, test=3).select_modalities(["text", "acoustic"]), tmp_path / "small.pkl")
    run = ["--features", str(path), "--device", "cpu", "--out", str(tmp_path / "out"), "--seeds", "0"]
    assert fusion.main([*run, "--parts", "elsewhere,subset", "--networks", "logistic", "--", *QUICK]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    figures = {name: x for line in lines for name, x in line["figures"].items()}
    assert {f"logistic, {kind} features" for kind in ("raw", "fused", "stage 2's")} <= set(figures)
    alone = {name for name in figures if name.startswith("text alone")}
    assert len(alone) == 3 and {"whole, trained on all"} <= set(figures)


def test_what_a_network_is_given_of_one_modality_is_that_alone():
    dialogue = small_corpus(train=1, test=1).split("train")[0]
    left = fusion.only(dialogue, "text").features
    assert np.array_equal(left["text"], dialogue.features["text"])
    assert np.isnan(left["acoustic"]).all() and np.isnan(left["visual"]).all()


def test_bad_input_is_a_line(tmp_path, capsys):
    path = write(small_corpus(train=4, test=2).select_modalities(["text"]), tmp_path / "one.pkl")
    assert fusion.main(["--features", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "nothing to fuse" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fusion.main(["--features", str(path), "--parts", "nonsense"])
    assert "choose among quality, elsewhere, subset" in capsys.readouterr().err
