"""Modalities that utterances lack, in the file or by --drop-modality: seen by nothing, and trained on all the same."""

import json
import pickle
from dataclasses import replace

import missing  # of benchmarks/
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import train_IEMOCAP
from dataloader import Standardiser, collate
from experiment.fused import with_shared
from experiment.run import Run
from feature_files import inspect, read, write_nine_tuple
from files import InputError
from model import GANFFN, AdversarialFusion, GraphEmotionClassifier, emotion_loss
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}
QUICK = ["--epochs", "2", "--GAN-epochs", "2", "--fused-channels", "16", "--device", "cpu", "--no-tensorboard"]
QUICK.append("--no-pictures")
BRIEF = [*QUICK, "--epochs", "1", "--GAN-epochs", "1"]


def with_holes(corpus):
    """Utterances that lack one modality, two, or all; a dialogue without any visual features."""
    dialogues = {}
    for k, (i, dialogue) in enumerate(corpus.dialogues.items()):
        features = {m: x.copy() for m, x in dialogue.features.items()}
        features["text"][1::3] = np.nan
        features["acoustic"][1::2] = np.nan
        features["visual"][0 if k % 4 == 0 else 1 :: 4] = np.nan
        if k % 5 == 0:
            features["visual"][:] = np.nan
        dialogues[i] = replace(dialogue, features=features)
    return replace(corpus, dialogues=dialogues)


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(train=12, test=4, mean_length=10, dims=DIMS)


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write_nine_tuple(corpus, folder / "whole.pkl")
    write_nine_tuple(with_holes(corpus), folder / "holes.pkl")
    return folder


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "finished"
    flags = ["--features", str(files / "holes.pkl"), "--missing", "mask", "--out", str(directory)]
    assert train_IEMOCAP.main([*flags, *QUICK, "--pictures"]) == 0
    return directory


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """A run on a file without holes, by which nothing is masked."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert train_IEMOCAP.main(["--features", str(files / "whole.pkl"), "--out", str(directory), *QUICK]) == 0
    return directory


@pytest.fixture
def network():
    torch.manual_seed(0)
    return GANFFN(AdversarialFusion(DIMS, fused_channels=16), GraphEmotionClassifier(16, 6, 2)).eval()


@pytest.fixture
def batch(corpus):
    holes = with_holes(corpus)
    standardise = Standardiser.fit(holes.split("train"))
    return collate([standardise(d) for d in holes.split("train")])


@pytest.mark.parametrize("window", [8, 0], ids=["in their dialogue", "alone"])
def test_shared_channels_that_are_known_change_no_answer(corpus, network, window):
    network.edges = network.fusion.context = window > 0
    standardise = Standardiser.fit(corpus.split("train"))
    dialogues = [standardise(d) for d in with_holes(corpus).split("train")]
    batch, known = collate(dialogues), with_shared(network.fusion, dialogues)
    with torch.no_grad():
        answers = network(batch)[batch.mask]
        for generator in network.fusion.generators.values():
            del generator.embed, generator.layers, generator.head  # they are not asked again
        assert torch.allclose(network(collate(known))[batch.mask], answers, atol=1e-5)


def heard(network, batch):
    """What the text of each utterance has come to before modalities are summed, ``[B, T, d]``."""
    return network.speaker_encoders(network.fusion(batch), batch)["text"]


def filled(batch, value):
    """The batch with something else where a modality is missing."""
    features = {m: x.masked_fill(~batch.has(m).unsqueeze(-1), value) for m, x in batch.features.items()}
    return replace(batch, features=features)


def weights(directory, name="best"):
    return load_file(directory / "checkpoints" / f"{name}.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def stage_1(network, batch):
    """Losses of stage 1 and all their gradients."""
    network.zero_grad()
    torch.manual_seed(0)  # the directions of the sliced distance
    fused = network.fusion(batch)
    players = network.fusion.discriminator_losses(batch, fused, gamma=1.0)
    terms = network.fusion.generator_losses(batch, fused)
    losses = [*players.values(), *(x for each in terms.values() for x in each.values())]
    sum(losses).backward()
    return [*losses, *(p.grad for p in network.fusion.parameters() if p.grad is not None)]


def test_a_row_of_nan_is_missing_and_one_that_overflowed_is_not(corpus):
    one = next(iter(corpus.dialogues.values()))
    x = one.features["text"].copy()
    x[0], x[1], x[1, 0], x[1, 1] = np.nan, 0, np.inf, -np.inf
    batch = collate([replace(one, features={**one.features, "text": x})])
    assert batch.has("text")[0, :3].tolist() == [False, True, True] and batch.has("visual")[0].all()


def test_rows_of_nan_are_marked_and_zeroed(corpus, batch):
    holes = with_holes(corpus).split("train")
    assert all(x.isfinite().all() for x in batch.features.values())
    for i, dialogue in enumerate(holes):
        for m, x in dialogue.features.items():
            assert batch.modality_mask[m][i, : len(dialogue)].tolist() == (~np.isnan(x).all(1)).tolist()
            assert not batch.modality_mask[m][i, len(dialogue) :].any()
    assert not any(x[~batch.modality_mask[m]].any() for m, x in batch.features.items())
    assert collate(corpus.split("train")).modality_mask == {}


def test_statistics_are_those_of_the_rows_there_are(corpus):
    holes = with_holes(corpus).split("train")
    fitted = Standardiser.fit(holes)
    for m in DIMS:
        rows = np.concatenate([d.features[m] for d in holes]).astype(np.float64)
        assert np.allclose(fitted.mean[m], np.nanmean(rows, 0)) and np.allclose(fitted.scale[m], np.nanstd(rows, 0))


def test_what_stands_in_place_of_the_missing_is_never_read(network, batch):
    noisy = filled(batch, 100.0)
    assert torch.equal(network(batch), network(noisy))
    pairs = zip(stage_1(network, batch), stage_1(network, noisy), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_missing_modality_changes_as_much_as_not_having_it(network, corpus):
    """Text alone everywhere is three times what became of the text, and an utterance with nothing is zeros."""
    dialogue = Standardiser.fit(corpus.split("train"))(corpus.split("test")[0])
    lost = {m: np.full_like(x, np.nan) for m, x in dialogue.features.items() if m != "text"}
    text = collate([replace(dialogue, features={**dialogue.features, **lost})])
    seen = []
    network.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(text)
    assert torch.allclose(seen[0], 3 * heard(network, text))
    nothing = replace(text, modality_mask={m: torch.zeros_like(text.mask) for m in DIMS})
    assert network(nothing).isfinite().all() and not seen[1].any()


@pytest.mark.parametrize("windows", [(8, 8), (0, 0)])
def test_what_is_said_by_one_modality_is_what_is_said_where_the_others_are_missing(batch, windows):
    torch.manual_seed(0)
    classifier = GraphEmotionClassifier(16, 6, 2, *windows)
    network = GANFFN(AdversarialFusion(DIMS, fused_channels=16, context=any(windows)), classifier).eval()
    whole, *alone = network.readings(batch)
    assert torch.equal(whole, network(batch))
    for m, said in zip(DIMS, alone, strict=True):
        gone = {k: batch.has(k) if k == m else torch.zeros_like(batch.mask) for k in DIMS}
        assert torch.allclose(said, network(replace(batch, modality_mask=gone)), atol=1e-6), m
        assert not torch.allclose(said, whole, atol=1e-2)
    assert len(network.readings(batch, unimodal=False)) == 1


def test_the_loss_by_each_modality_alone_weighs_as_told(files, tmp_path, monkeypatch):
    losses = []

    def watched(*args):
        losses.append(emotion_loss(*args))
        return losses[-1]

    monkeypatch.setattr(train_IEMOCAP, "emotion_loss", watched)
    run = ["--features", str(files / "whole.pkl"), *QUICK, "--epochs", "1", "--unimodal-loss", "0.5"]
    assert train_IEMOCAP.main([*run, "--out", str(tmp_path / "run")]) == 0
    whole, *alone = (float(loss) for loss in losses)  # of the one step
    assert len(alone) == 3
    told = pd.read_csv(tmp_path / "run" / "history.csv")["train_loss"].item()
    assert told == pytest.approx((whole + 0.5 * sum(alone)) / 2.5, rel=1e-5)


def test_a_party_hears_nothing_at_its_missing_turns(network, batch):
    """The text of other utterances is as if the utterances that lack it were not there."""
    one = replace(batch, modality_mask={**batch.modality_mask, "text": batch.mask.clone()})
    one.modality_mask["text"][:, 3] = False
    rest = [k for k in range(batch.mask.shape[1]) if k != 3]
    cut = replace(
        one,
        features={m: x[:, rest] for m, x in one.features.items()},
        modality_mask={m: x[:, rest] for m, x in one.modality_mask.items()},
        **{name: getattr(one, name)[:, rest] for name in ("mask", "speakers", "labels")},
    )
    with_it, without = (heard(network, b) for b in (one, cut))
    assert torch.allclose(with_it[:, rest][cut.mask], without[cut.mask], atol=1e-5)


def test_losses_are_finite_where_no_utterance_has_two_modalities(network, batch):
    turn = torch.arange(batch.mask.shape[1]) % 3
    apart = replace(batch, modality_mask={m: batch.mask & (turn == k) for k, m in enumerate(DIMS)})
    assert all(x.isfinite().all() for x in stage_1(network, apart))


def test_hiding_hides_as_often_as_told_and_never_all(corpus):
    torch.manual_seed(0)
    batch = collate(corpus.split("train") * 20)
    hidden = batch.drop_modality({"text": 0.3, "visual": 0.6})
    count = batch.mask.sum()
    assert (hidden.has("text").sum() / count).item() == pytest.approx(0.7, abs=0.03)
    assert (hidden.has("visual").sum() / count).item() == pytest.approx(0.4, abs=0.03)
    assert torch.equal(hidden.has("acoustic"), batch.mask)
    assert not any(x[~hidden.has(m)].any() for m, x in hidden.features.items())
    most = batch.drop_modality(dict.fromkeys(DIMS, 0.99))
    assert torch.equal(torch.stack([most.has(m) for m in DIMS]).any(0), batch.mask)
    assert not (torch.stack([most.has(m) for m in DIMS]).all(0)).any()


def test_hiding_keeps_holes_and_shows_no_padding(batch):
    hidden = batch.drop_modality({"text": 0.9, "visual": 0.9, "acoustic": 0.9})
    assert all((hidden.has(m) <= batch.has(m)).all() for m in DIMS)
    some = torch.stack([batch.has(m) for m in DIMS]).any(0)
    assert torch.equal(torch.stack([hidden.has(m) for m in DIMS]).any(0), some)


def test_training_sees_no_hidden_row_and_scoring_hides_nothing(files, tmp_path, monkeypatch):
    seen = {True: [], False: []}
    forward, step = GANFFN.forward, train_IEMOCAP.adversarial_step

    def watch(self, batch):
        seen[self.training].append(batch)
        return forward(self, batch)

    def watch_step(fusion, batch, *others):
        seen[True].append(batch)
        return step(fusion, batch, *others)

    monkeypatch.setattr(GANFFN, "forward", watch)
    monkeypatch.setattr(train_IEMOCAP, "adversarial_step", watch_step)
    flags = ["--features", str(files / "whole.pkl"), "--out", str(tmp_path / "run"), *BRIEF]
    assert train_IEMOCAP.main([*flags, "--drop-modality", "visual:0.5", "--drop-modality", "text:0.2"]) == 0
    assert all(not b.modality_mask["visual"][b.mask].all() for b in seen[True])
    assert all(not x[~b.has(m)].any() for b in seen[True] for m, x in b.features.items())
    assert seen[False] and not any(b.modality_mask for b in seen[False])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["augmentation"]["drop_modality"] == {"visual": 0.5, "text": 0.2}


def test_a_file_with_holes_trains_with_mask_alone(files, finished, tmp_path, capsys):
    report = json.loads((finished / "report.json").read_text())
    assert np.isfinite(report["test"]["loss"])
    assert all(x.isfinite().all() for x in weights(finished).values())
    assert (finished / "fused_features.png").exists()
    flags = ["--features", str(files / "holes.pkl"), "--out", str(tmp_path / "refused"), *QUICK]
    assert train_IEMOCAP.main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "add --missing mask" in error and not (tmp_path / "refused").exists()


def test_a_whole_file_comes_to_the_same_bits_with_and_without_mask(files, whole, tmp_path):
    flags = ["--features", str(files / "whole.pkl"), "--out", str(tmp_path / "mask"), *QUICK]
    assert train_IEMOCAP.main([*flags, "--missing", "mask"]) == 0
    assert same(weights(whole), weights(tmp_path / "mask"))


def test_a_stopped_run_that_hides_ends_with_the_bits_of_one_never_stopped(files, tmp_path, monkeypatch):
    flags = ["--features", str(files / "holes.pkl"), "--missing", "mask", "--drop-modality", "text:0.4", *QUICK]
    assert train_IEMOCAP.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    save = Run.save

    def stop(self, stage, epoch, parts):
        save(self, stage, epoch, parts)
        self.stop_requested = epoch == 1

    monkeypatch.setattr(Run, "save", stop)
    assert train_IEMOCAP.main([*flags, "--out", str(tmp_path / "stopped")]) == 130
    assert train_IEMOCAP.main(["--resume", str(tmp_path / "stopped")]) == 130
    monkeypatch.undo()
    assert train_IEMOCAP.main(["--resume", str(tmp_path / "stopped")]) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_a_run_scores_and_exports_a_file_with_holes(files, finished, tmp_path, capsys):
    assert train_IEMOCAP.main(["--evaluate", str(finished), "--export-fused", str(tmp_path / "fused.pkl")]) == 0
    fused = read(tmp_path / "fused.pkl", missing="mask")
    holes = read(files / "holes.pkl", missing="mask")
    for i, dialogue in holes.dialogues.items():
        for m in DIMS:
            lost, gone = (np.isnan(d.features[m]) for d in (dialogue, fused.dialogues[i]))
            assert gone.all(1).tolist() == lost.all(1).tolist() == gone.any(1).tolist()


def test_a_run_on_whole_data_scores_a_file_with_holes_when_told(files, whole, capsys):
    flags = ["--evaluate", str(whole), "--features", str(files / "holes.pkl")]
    assert train_IEMOCAP.main(flags) == 2
    assert "--missing mask" in capsys.readouterr().err
    assert train_IEMOCAP.main([*flags, "--missing", "mask"]) == 0


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--drop-modality", "smell:0.3"], "unknown modality 'smell'; choose among text, visual, acoustic"),
        (["--drop-modality", "visual"], "such as visual:0.3"),
        (["--drop-modality", "visual:much"], "'much' is no float"),
        (["--drop-modality", "visual:1.5"], "out of range"),
        (["--drop-modality", "visual:nan"], "out of range"),
        (["--drop-modality", "visual:-0.1"], "out of range"),
        (["--drop-modality", "text:0.1,text:0.2"], "twice"),
        (["--drop-modality", "text:0.1", "--drop-modality", "text:0.2"], "names text twice"),
        (["--drop-modality", "visual:0.1", "--modalities", "text,acoustic"], "no visual features; there are text, aco"),
        (["--missing", "impute"], "choose from"),
        (["--evaluate", "run", "--drop-modality", "text:0.1"], "leave out --drop-modality"),
    ],
)
def test_wrong_flags_are_one_line(files, tmp_path, capsys, flags, says):
    command = ["--features", str(files / "whole.pkl"), "--out", str(tmp_path / "run"), *flags]
    try:
        status = train_IEMOCAP.main(command)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_modality_that_no_training_utterance_has_is_refused(corpus, tmp_path, capsys):
    dialogues = dict(corpus.dialogues)
    for i in corpus.splits["train"]:
        lost = np.full_like(dialogues[i].features["visual"], np.nan)
        dialogues[i] = replace(dialogues[i], features={**dialogues[i].features, "visual": lost})
    with pytest.raises(InputError, match="--modalities text,acoustic"):
        Standardiser.fit([dialogues[i] for i in corpus.splits["train"]])
    write_nine_tuple(replace(corpus, dialogues=dialogues), tmp_path / "blind.pkl")
    flags = ["--features", str(tmp_path / "blind.pkl"), "--missing", "mask", "--out", str(tmp_path / "run"), *QUICK]
    assert train_IEMOCAP.main(flags) == 2
    assert "no training utterance has visual features" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_dialogues_without_an_array_are_masked_too(files, tmp_path):
    nine = list(pickle.loads((files / "whole.pkl").read_bytes()))
    first, second, *_ = nine[3]
    nine[5][first] = None
    del nine[5][second]
    (tmp_path / "absent.pkl").write_bytes(pickle.dumps(tuple(nine)))
    flags = ["--features", str(tmp_path / "absent.pkl"), "--missing", "mask", "--out", str(tmp_path / "run")]
    assert train_IEMOCAP.main([*flags, *BRIEF]) == 0


def test_export_to_a_folder_that_is_not_there_is_refused_before_scoring(finished, tmp_path, capsys):
    flags = ["--evaluate", str(finished), "--export-fused", str(tmp_path / "no" / "fused.pkl")]
    assert train_IEMOCAP.main(flags) == 2
    said = capsys.readouterr()
    assert "no such folder" in said.err and "F1-score" not in said.out


def test_a_line_break_in_a_name_makes_no_second_line(capsys):
    assert train_IEMOCAP.main(["--features", "a\nb.pkl"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_benchmark_prints_a_row_for_each_modality_and_share(files, tmp_path, capsys):
    flags = [
        "--seeds",
        "0,1",
        "--shares",
        "0,1",
        "--csv",
        str(tmp_path / "missing.csv"),
        "--",
        *BRIEF,
        "--GAN-epochs",
        "0",
    ]
    assert missing.main(["--features", str(files / "whole.pkl"), *flags]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| text", "| vis", "| aco"))]
    assert len(rows) == 6 and all(line.count("±") == 3 for line in rows)
    assert len((tmp_path / "missing.csv").read_text().splitlines()) == 1 + 2 * 3 * 6


def test_the_benchmark_compares_models_over_the_seeds_that_all_have(files, tmp_path, monkeypatch, capsys):
    scores = iter([50.0, 51.0, 52.0, 90.0])  # seed 1 is stopped after its first model

    def run(settings, corpus, shares):
        if (f1 := next(scores, None)) is None:
            raise KeyboardInterrupt
        return [{"seed": settings.run.seed, "modality": "text", "missing": 0.0, "weighted_f1": f1}]

    monkeypatch.setattr(missing, "run", run)
    flags = ["--seeds", "0,1", "--shares", "0", "--csv", str(tmp_path / "missing.csv"), "--", "--device", "cpu"]
    assert missing.main(["--features", str(files / "whole.pkl"), *flags]) == 130
    assert "| text | 0% | 50.00 ± – | 51.00 ± – | 52.00 ± – |" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "missing.csv")["weighted_f1"].tolist() == [50.0, 51.0, 52.0, 90.0]


def test_inspect_says_how_many_utterances_lack_a_modality(files):
    warnings = inspect(files / "holes.pkl")["warnings"]
    assert any(line.startswith("text: ") and line.endswith("utterances lack it in train") for line in warnings)
    assert not any("columns" in line or "features of another" in line for line in warnings)


def test_a_run_whose_held_out_utterances_all_lack_a_modality_is_reported(corpus, tmp_path):
    dialogues = dict(corpus.dialogues)
    for i in corpus.splits["test"]:
        features = {**dialogues[i].features, "visual": np.full_like(dialogues[i].features["visual"], np.nan)}
        dialogues[i] = replace(dialogues[i], features=features)
    write_nine_tuple(replace(corpus, dialogues=dialogues), tmp_path / "x.pkl")
    flags = ["--features", str(tmp_path / "x.pkl"), "--missing", "mask", "--out", str(tmp_path / "run")]
    assert train_IEMOCAP.main([*flags, *BRIEF]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["test"]["weighted_f1"] >= 0 and "fusion" not in report


@pytest.mark.parametrize("flag", ["--unimodal-loss 0.5", "--drop-modality text:0.2"])
def test_a_flag_for_several_modalities_is_refused_with_one(files, tmp_path, capsys, flag):
    argv = ["--features", str(files / "whole.pkl"), "--modalities", "text", *flag.split()]
    assert train_IEMOCAP.main([*argv, "--out", str(tmp_path / "run"), *QUICK]) == 2
    error = capsys.readouterr().err
    assert f"whole.pkl: {flag.split()[0]} is for several modalities" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_begun_when_one_modality_took_such_a_flag_goes_on(files, tmp_path):
    run = tmp_path / "run"
    argv = ["--features", str(files / "whole.pkl"), "--modalities", "text", "--out", str(run)]
    assert train_IEMOCAP.main([*argv, *BRIEF]) == 0
    config = json.loads((run / "config.json").read_text())
    config["settings"]["classifier"]["unimodal_loss"] = 0.5
    (run / "config.json").write_text(json.dumps(config))
    assert train_IEMOCAP.main(["--resume", str(run)]) == 0
