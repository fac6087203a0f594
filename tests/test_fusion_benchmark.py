import json
from dataclasses import replace

import fusion  # of benchmarks/
import numpy as np
import pandas as pd
import pytest
from small import small_corpus, write

from dataloader import Standardiser, hold_out_validation
from experiment.flags import parse_args
from files import InputError

QUICK = ["--GAN-epochs", "1", "--epochs", "1", "--fused-channels", "16", "--batch-size", "6"]


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


def test_cca_is_asked_for_the_utterances_that_the_fused_features_are_asked_for():
    corpus = small_corpus(train=1, test=2)
    for d in corpus.dialogues.values():
        d.features["visual"][::2] = np.nan
    held_out = corpus.split("test")
    x, y, dialogue = fusion.paired(held_out, "text", "acoustic", whole=True)
    assert len(x) == len(y) == len(dialogue) == sum(len(d) // 2 for d in held_out)
    assert len(fusion.paired(held_out, "text", "acoustic")[0]) == sum(map(len, held_out))


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


def test_what_is_there_is_not_taken_for_other_networks_or_other_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fusion, "elsewhere", lambda run, part, names, rate: {f"{n}, raw features": 1.0 for n in names})
    path = write(small_corpus(train=6, test=3), tmp_path / "small.pkl")
    run = ["--features", str(path), "--device", "cpu", "--out", str(tmp_path / "out"), "--parts", "elsewhere"]
    run += ["--seeds", "0", "--folds", "2"]
    assert fusion.main([*run, "--networks", "gru"]) == fusion.main([*run, "--networks", "gru,lstm"]) == 0
    table = pd.read_csv(tmp_path / "out" / "fusion.csv")
    assert table["measure"].value_counts().to_dict() == {"gru, raw features": 2, "lstm, raw features": 2}
    for other in (["--folds-over", "train"], ["--modalities", "text,visual"]):
        assert fusion.main([*run, *other]) == 2
        assert "other data, folds or flags" in capsys.readouterr().err


def test_what_a_network_is_given_of_one_modality_is_that_alone():
    dialogue = small_corpus(train=1, test=1).split("train")[0]
    left = fusion.only(dialogue, "text").features
    assert np.array_equal(left["text"], dialogue.features["text"])
    assert np.isnan(left["acoustic"]).all() and np.isnan(left["visual"]).all()


def test_features_are_standardised_as_the_run_has_learnt_to_read_them(tmp_path, monkeypatch):
    """With a validation split that is by fewer dialogues than the corpus has for training."""
    settings = parse_args(["--demo", *QUICK, "--valid", "0.5", "--no-pictures", "--no-tensorboard"]).settings
    corpus, seen = small_corpus(train=4, test=1), []
    monkeypatch.setattr(fusion.common, "weighted_f1", lambda network, dialogues: seen.extend(dialogues) or 0.0)
    fusion.scored(settings.replace(run__device="cpu"), corpus)(None)
    standardise = Standardiser.fit(hold_out_validation(corpus, 0.5, settings.run.seed).split("train"))
    wanted = standardise(corpus.split("test")[0]).features
    assert all(np.array_equal(seen[0].features[m], x) for m, x in wanted.items())


def test_bad_input_is_a_line(tmp_path, capsys):
    path = write(small_corpus(train=4, test=2).select_modalities(["text"]), tmp_path / "one.pkl")
    assert fusion.main(["--features", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "nothing to fuse" in capsys.readouterr().err
    corpus = small_corpus(train=4, test=2)
    holes = {}
    for i, d in corpus.dialogues.items():  # text of every other utterance, visual features of the others
        gone = (np.arange(len(d)) % 2 == 0)[:, None]
        text, visual = (np.where(x, np.float32("nan"), d.features[m]) for m, x in (("text", gone), ("visual", ~gone)))
        holes[i] = replace(d, features={**d.features, "text": text, "visual": visual})
    holes = replace(corpus, dialogues=holes)
    run = ["--features", str(write(holes, tmp_path / "holes.pkl")), "--missing", "mask", "--device", "cpu"]
    assert fusion.main([*run, "--parts", "quality", "--seeds", "0", "--out", str(tmp_path / "q"), "--", *QUICK]) == 2
    assert "no utterance of a split has all modalities" in capsys.readouterr().err
    data = fusion.common.standardised(small_corpus(train=2, test=2))
    with pytest.raises(InputError, match="fewer than three training dialogues"):
        fusion.cca_retrieval(data["train"], data["test"], "text", "acoustic")
    with pytest.raises(SystemExit):
        fusion.main(["--features", str(path), "--parts", "nonsense"])
    assert "choose among quality, elsewhere, subset" in capsys.readouterr().err
