"""The benchmark of growth: what it writes can be trained on, and what it says of its figures."""

import json

import numpy as np
import pandas as pd
import pytest
import scale

import feature_files
from experiment import fusion_quality

CASE = scale.Case("dialogues", 4, 6, {"text": 5, "acoustic": 3}, batch_size=2, epochs=2)


def test_a_case_is_written_as_the_corpus_it_says(tmp_path):
    scale.write(CASE, tmp_path / "f.safetensors")
    corpus = feature_files.read(tmp_path / "f.safetensors")
    assert {split: len(ids) for split, ids in corpus.splits.items()} == {"train": 4, "test": 1}
    assert {len(d) for d in corpus.dialogues.values()} == {6} and corpus.dims == dict(CASE.dims)
    assert CASE.data == pytest.approx(
        sum(x.nbytes for d in corpus.dialogues.values() for x in d.features.values()) / 2**20
    )


def test_turns_change_and_the_utterances_of_a_batch_do_not():
    made = [case for case in scale.cases(30, 20_000, 20_000, False) if case.group == "turns"]
    assert [case.turns for case in made] == [100, 1000, 20_000]
    assert {case.turns * case.batch_size for case in made} == {20_000}


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scale.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(scale.InputError, match="TMPDIR"):
        scale.write(CASE, tmp_path / "f.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not scale.STATUS.exists(), reason="Linux only")
def test_a_process_says_what_its_training_took(tmp_path, capsys):
    scale.write(CASE, tmp_path / "f.safetensors")
    flags = ["--features", str(tmp_path / "f.safetensors"), "--fused-channels", "16", "--device", "cpu"]
    flags += ["--GAN-epochs", "1", "--epochs", "1", "--no-pictures", "--no-tensorboard"]
    assert scale.main(["--measure", "--", *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["seconds"] > 0 and figures["most"] >= figures["loaded"] > 0


def rows(*memory):
    return pd.DataFrame(
        [
            {
                **{"group": "dialogues", "dialogues": n, "turns": 40, "features": 10, "data MiB": float(n)},
                **{"ms an utterance": 1.0 + n / 10_000, "MiB above the data": float(m), "MiB in all": float(m)},
            }
            for n, m in zip((10, 100, 1000), memory, strict=True)
        ]
    )


def test_what_it_comes_to_is_said_beside_the_target():
    said = scale.verdicts(rows(50, 60, 150))
    assert "1.10 times the fastest (1.15 wanted)" in said[0]
    assert "900 MiB more of data take 90 MiB more" in said[1] and "0.100 of that" in said[1]
    assert (
        len(scale.verdicts(rows(50, 60, 150).assign(dialogues=[200, 2_000, 20_000]))) == 2
    )  # not a million utterances


def test_a_picture_is_drawn(tmp_path):
    scale.draw(rows(50, 60, 150), tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_quality_of_a_large_corpus_looks_at_part_of_it(monkeypatch):
    monkeypatch.setattr(fusion_quality, "MOST", 100)
    assert fusion_quality.thinned(["x" * 10] * 8) == ["x" * 10] * 8
    assert len(fusion_quality.thinned(["x" * 10] * 80)) == 10


def test_partners_are_found_in_a_long_dialogue_as_in_a_short_one(monkeypatch):
    rng = np.random.default_rng(0)
    found = rng.normal(size=(50, 4))
    query, dialogue = found + rng.normal(size=found.shape), np.repeat([0, 1], [30, 20])
    whole = fusion_quality.retrieval(query, found, dialogue)
    assert 0 < whole < 100
    monkeypatch.setattr(fusion_quality, "SIMILARITIES", 70)
    assert fusion_quality.retrieval(query, found, dialogue) == whole
