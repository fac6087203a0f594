"""What TensorBoard is given, read back without it."""

import errno
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from made_run import DIMS, corpus_of, make_run
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from dataloader import Standardiser, collate
from experiment import insight
from experiment.settings import ClassifierSettings, FusionSettings
from experiment.tensorboard import Curves, Writer, discriminators_right, finish, mean_curves, tag_of
from experiment.trained import build_network, shape_of
from files import WriteError

GLOSSARY = (Path(__file__).parent.parent / "docs" / "look.md").read_text(encoding="utf-8")


def events(folder):
    found = []
    for path in sorted(Path(folder).glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[12 + size + 4 :]
    return found


def values(folder):
    return [(value.tag, event.step, value) for event in events(folder) for value in event.summary.value]


def test_curves_are_grouped_and_once_each(tmp_path):
    history = {"adversarial": [], "classifier": []}
    curves = Curves(tmp_path)
    for epoch in (1, 2):
        row = {"epoch": epoch, "text_G_loss": 0.7, "text_D_right_on_real": 50.0, "learning_rate": 0.1}
        history["adversarial"].append(row)
        curves.add({"adversarial": [row]}, history)
    curves.close()
    again = Curves(tmp_path)  # as after a stop
    row = {"epoch": 1, "valid_f1_sad": 3.0, "train_loss": 2.0, "gradient_norm": 1.0}
    history["classifier"].append(row)
    again.add({"classifier": [row]}, history)
    again.close()
    found = [(tag, step) for tag, step, _ in values(tmp_path / "tensorboard")]
    expected = ["stage1_generators/text", "stage1_right_on_real/text", "stage1/learning_rate"]
    assert found == [(tag, step) for step in (1, 2) for tag in expected] + [
        ("stage2_valid_f1/sad", 1),
        ("stage2_train/loss", 1),
        ("stage2/gradient_norm", 1),
    ]


def test_the_tags_of_curves_are_in_the_glossary():
    for column in ("text_G_loss", "text_D_loss", "text_D_right_on_real", "text_D_right_on_fused", "text_contrastive"):
        assert f"`{tag_of('adversarial', column).split('/')[0]}/…`" in GLOSSARY
    for column in ("train_loss", "valid_f1_sad", "gradient_norm"):
        assert f"`{tag_of('classifier', column).split('/')[0]}/" in GLOSSARY


def test_the_end_of_a_run_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(insight, "plane", lambda points: points[:, :2])  # the points of maps are of no matter
    network, dialogues = make_run(tmp_path / "run", corpus_of([9, 7]))
    seen = insight.gather(tmp_path / "run", network=network, dialogues=dialogues)
    finish(seen)
    finish(seen)  # made again, nothing is there twice
    found = values(tmp_path / "run" / "tensorboard")
    tags = [tag for tag, _, _ in found]
    assert len(tags) == len(set(tags))
    assert all(f"`{tag.split('/')[0]}/" in GLOSSARY for tag in tags if not tag.startswith("_hparams_"))
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(tags)
    assert {"final_test/weighted_f1", "final_test_f1/sad", "precision_recall/sad"} <= set(tags)
    assert {f"run/{name}/text_summary" for name in ("flags", "report", "watched")} <= set(tags)
    images = {tag: value for tag, _, value in found if tag.startswith("images/")}
    assert set(images) == {
        f"images/{name}"
        for name in ("confusion_matrix", "per_class_f1", "reliability_diagram", "fused_features", "last_layer")
    }
    assert all(value.image.encoded_image_string.startswith(b"\x89PNG") for value in images.values())
    folder = tmp_path / "run" / "tensorboard" / "00000" / "fused_features"
    points = (folder / "tensors.tsv").read_text().splitlines()
    labels = (folder / "metadata.tsv").read_text().splitlines()
    assert len(points) == len(labels) - 1 == 16 * len(DIMS)
    assert labels[0].split("\t") == ["emotion", "modality", "speaker", "dialogue"]


def test_several_seeds_have_mean_curves(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"seed{seed}", corpus_of([5]), seed=seed)
    path = tmp_path / "seed1" / "history.csv"
    path.write_text(path.read_text().replace("20.0", "30.0"))
    mean_curves(tmp_path)
    mean_curves(tmp_path)
    read = {}
    for kind in ("mean", "mean_plus_deviation", "mean_minus_deviation"):
        found = values(tmp_path / "tensorboard" / kind)
        assert len({(tag, step) for tag, step, _ in found}) == len(found)
        read[kind] = {(tag, step): value.simple_value for tag, step, value in found}["stage2_train/weighted_f1", 1]
    assert read == pytest.approx({
        "mean": 25, "mean_plus_deviation": 25 + 50**0.5, "mean_minus_deviation": 25 - 50**0.5
    })  # fmt: skip


def test_a_full_disk_is_an_error_where_it_happens(tmp_path, monkeypatch):
    assert issubclass(Writer, SummaryWriter)

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", full)
    row = {"epoch": 1, "text_G_loss": 0.7}
    with pytest.raises(WriteError, match="No space left"):
        Curves(tmp_path).add({"adversarial": [row]}, {"adversarial": [row]})


def test_discriminators_are_looked_at_without_a_trace():
    corpus = corpus_of([9, 7])
    network = build_network(shape_of(corpus), FusionSettings(channels=16), ClassifierSettings())
    standardise = Standardiser.fit(corpus.split("train"))
    batch = collate([standardise(d) for d in corpus.split("test")])
    before = torch.get_rng_state()
    found = discriminators_right(network.fusion, batch)
    assert torch.equal(before, torch.get_rng_state()) and network.fusion.training
    assert set(found) == {f"{m}_D_right_on_{what}" for m in DIMS for what in ("real", "fused")}
    assert all(0 <= value <= 100 for value in found.values())


def test_nothing_needs_tensorboard_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in ("tensorboard", "look", "page"):
        runpy.run_path(str(Path(__file__).parent.parent / "experiment" / f"{name}.py"))


def test_the_deviation_of_seeds_of_folds_is_that_of_the_seeds(tmp_path):
    for seed, fold, loss in ((0, 1, 0), (0, 2, 8), (1, 1, 2), (1, 2, 10)):
        name = f"seed{seed}/fold{fold}of2"
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "report.json").touch()
        (tmp_path / name / "history.csv").write_text(f"epoch,train_loss\n1,{loss}\n")
    mean_curves(tmp_path)
    found = {k: values(tmp_path / "tensorboard" / k)[0][2].simple_value for k in ("mean", "mean_plus_deviation")}
    assert found == pytest.approx({"mean": 5, "mean_plus_deviation": 5 + 2**0.5})
