"""One run over several processes: the same losses and weights as one, whole dialogues, one voice, and ways to stop."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small import BARE, small_corpus, train, weights, write

import parallel
import train_IEMOCAP
from dataloader import IGNORE_LABEL, batches
from experiment.settings import AugmentationSettings, Settings
from experiment.start import begin
from experiment.trained import build_network
from feature_files import write_container
from files import InputError
from model import ChannelNorm

FLAGS = ["--GAN-epochs", "1", "--epochs", "2", "--fused-channels", "16", "--batch-size", "3", *BARE]
ALIKE = ["--dropout", "0", "--missing", "mask", "--drop-modality", "text:0.2", "--class-weight"]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Seven training dialogues, so that one is left for the last batch; some utterances lack a modality or a label."""
    corpus, rng = small_corpus(train=7), np.random.default_rng(0)
    dialogues = {}
    for i, d in corpus.dialogues.items():
        lost = {m: x.copy() for m, x in d.features.items()}
        lost["visual"][rng.random(len(d)) < 0.3] = np.nan
        dialogues[i] = replace(d, features=lost, labels=np.where(rng.random(len(d)) < 0.2, IGNORE_LABEL, d.labels))
    path = tmp_path_factory.mktemp("features") / "small.safetensors"
    write_container(replace(corpus, dialogues=dialogues), path)
    return path


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """No process that is forked looks through what is imported for garbage: that copies it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def alone(features, tmp_path_factory):
    """The run of one process."""
    return train(tmp_path_factory.mktemp("runs") / "alone", "--features", features, *FLAGS, *ALIKE)


def together(out, *argvs, before=lambda rank: None):
    """Run the script in as many processes as there are command lines; each one's exit status and what it said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out.mkdir(exist_ok=True)

    def work(rank, argv):
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(argvs), "LOCAL_WORLD_SIZE": len(argvs)}
        os.environ.update({name: str(value) for name, value in here.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        warnings.simplefilter("error", FutureWarning)  # a user would see it
        before(rank)
        with (out / f"said{rank}").open("w") as said, redirect_stdout(said), redirect_stderr(said):
            status = train_IEMOCAP.main([str(a) for a in argv])
            said.flush()
        os._exit(status)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process with more does not survive a fork
    try:
        fork = multiprocessing.get_context("fork")
        started = [fork.Process(target=work, args=each) for each in enumerate(argvs)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
    finally:
        torch.set_num_threads(threads)
    return [(process.exitcode, (out / f"said{rank}").read_text()) for rank, process in enumerate(started)]


def alike(one, other):
    """Whether weights are the same but for what nothing depends on.

    What shifts all of a discriminator's logits alike cancels out of its loss; what moves that is rounding. And where a
    gradient is next to nothing, Adam makes a tenth of a step (1e-3) of the rounding in it.
    """
    told = [name for name in one if not ("discriminators" in name and name.endswith("bias"))]
    apart = [(one[name] - other[name]).abs().double() for name in told]
    return all(x.max() < 2e-4 and x.mean() < 1e-6 for x in apart)


@pytest.mark.parametrize("processes", [2, 3])
def test_losses_and_weights_are_those_of_one_process(processes, alone, features, tmp_path):
    """Without dropout, but with augmentation, missing modalities, class weights and a batch too small for all."""
    argv = ["--features", features, "--out", tmp_path / "run", *FLAGS, *ALIKE]
    said = together(tmp_path / "said", *[argv] * processes)
    assert [status for status, _ in said] == [0] * processes
    assert "Test performance.." in said[0][1] and not any(text for _, text in said[1:])
    run = tmp_path / "run"
    for name in ("fusion", "best"):
        one, other = weights(alone, name), weights(run, name)
        assert alike(one, other)
    for name in ("GAN_loss.csv", "history.csv"):
        one, other = (pd.read_csv(each / name) for each in (alone, run))
        told = [
            c for c in one if c.endswith(("_loss", "_contrastive", "_translation", "_reconstruction", "_norm", "_f1"))
        ]
        assert told and np.allclose(one[told], other[told], rtol=1e-5, atol=1e-5)
    one, other = (json.loads((each / "report.json").read_text())["test"] for each in (alone, run))
    assert one["confusion_matrix"] == other["confusion_matrix"] and one["support"] == other["support"]


@pytest.mark.parametrize("stage_1", [1, 0])
def test_where_no_modality_is_missing_the_same_comes_out(stage_1, tmp_path):
    """Without stage 1 statistics of the fused features are those of stage 2's batches."""
    features = write(small_corpus(train=7), tmp_path / "whole.pkl")
    flags = ["--features", features, *FLAGS, "--dropout", "0", "--GAN-epochs", stage_1]
    alone = train(tmp_path / "alone", *flags)
    said = together(tmp_path / "said", *[[*flags, "--out", tmp_path / "run"]] * 2)
    assert [status for status, _ in said] == [0, 0]
    assert alike(weights(alone), weights(tmp_path / "run"))


def test_a_stop_of_any_process_stops_all_and_another_number_goes_on(alone, features, tmp_path):
    argv = ["--features", features, "--out", tmp_path / "run", *FLAGS, *ALIKE]
    log = train_IEMOCAP.Run.log

    def stop_after_first_epoch(rank):
        def then_stop(run, stage, row):
            log(run, stage, row)
            if rank == 1 and (stage, row["epoch"]) == ("classifier", 1):
                os.kill(os.getpid(), signal.SIGTERM)

        train_IEMOCAP.Run.log = then_stop

    said = together(tmp_path / "said", argv, argv, before=stop_after_first_epoch)
    assert [status for status, _ in said] == [130, 130]
    assert "Interrupted at epoch 2 of stage 2, step 1. To go on: torchrun --nproc-per-node 2" in said[0][1] + said[1][1]
    again = ["--resume", tmp_path / "run"]
    status, text = together(tmp_path / "said", again, again, again)[0]
    assert status == 0 and "begun with 2 processes, goes on with 3; the bits may differ" in text
    one, other = weights(alone), weights(tmp_path / "run")
    assert alike(one, other)


@pytest.mark.parametrize("what", ["flags", "data"])
def test_processes_that_are_to_do_different_things_are_refused_in_a_line(what, features, tmp_path):
    argv = ["--features", features, "--out", tmp_path / "run", *FLAGS, "--missing", "mask"]
    other = [*argv, "--lr", "0.1"]
    if what == "data":
        other = [argv[0], write(small_corpus(train=7, seed=1), tmp_path / "other.pkl"), *argv[2:]]
    said = together(tmp_path / "said", argv, other)
    assert [status for status, _ in said] == [2, 2]
    text = "".join(text for _, text in said)
    assert text.count("\n") == 1 and text.startswith("error: torchrun: process ")
    assert ("--lr" if what == "flags" else "data with SHA-256") in text
    assert not (tmp_path / "run").exists()


def test_a_killed_process_ends_the_job_in_a_line_and_the_run_goes_on(features, tmp_path):
    run = tmp_path / "run"
    script = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", train_IEMOCAP.__file__]
    argv = ["--features", str(features), "--missing", "mask", *FLAGS, "--epochs", "500", "--out", str(run)]
    with subprocess.Popen(
        [*script, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as job:
        while not (run / "history.csv").exists():
            assert job.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        (second,) = [p for p in children if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes()]
        os.kill(int(second), signal.SIGKILL)
        error = job.communicate()[1]
    ours = [line for line in error.splitlines() if line.startswith("error: ")]
    assert job.returncode == 1 and len(ours) == 1
    assert "another of the run's processes is gone. What was finished is kept. To go on: torchrun" in ours[0]
    assert 'train_IEMOCAP.py", line' not in error  # torchrun's own words, but no traceback of ours
    assert len(pd.read_csv(run / "history.csv")) >= 1 and (run / "checkpoints" / "last.pt").exists()
    monitor = train_IEMOCAP.Run.stop_here
    try:
        train_IEMOCAP.Run.stop_here = lambda self, where: (setattr(self, "stop_requested", True), monitor(self, where))
        assert train_IEMOCAP.main(["--resume", str(run)]) == 130
    finally:
        train_IEMOCAP.Run.stop_here = monitor
    assert "interrupted" in json.loads((run / "report.json").read_text())


# Whole dialogues ------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_processes(monkeypatch):
    """What each of several processes has of every batch, without starting any."""

    def dealt(dialogues, size):
        parts = []
        for rank in range(size):
            monkeypatch.setattr(parallel, "size", lambda: size)
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            loader = batches(dialogues, len(dialogues), torch.Generator().manual_seed(0))
            parts += [clean for clean, _ in parallel.deal(loader, AugmentationSettings())]
        monkeypatch.undo()
        return parts

    return dealt


def test_the_references_fault_and_ours_free_of_it(as_processes):
    """The reference's DataParallel splits the first axis, and its batches are [T, B, d]: each device has half of every
    conversation. What an utterance gets then depends on the number of devices; here it does not."""
    corpus = small_corpus(train=4)
    dialogues = corpus.split("train")
    shape = {"dims": corpus.dims, "label_names": corpus.label_names, "num_speakers": 2}
    torch.manual_seed(0)
    network = build_network(shape, Settings().replace(fusion__channels=16).fusion, Settings().classifier).eval()
    (whole,) = batches(dialogues, 4)

    def halves(x):  # as torch.nn.parallel.scatter does with two devices
        return [half.transpose(0, 1) for half in x.transpose(0, 1).chunk(2)]

    cut = [
        replace(whole, features=dict(zip(whole.features, x, strict=True)), mask=mask, speakers=speakers, labels=labels)
        for *x, mask, speakers, labels in zip(
            *(halves(x) for x in [*whole.features.values(), whole.mask, whole.speakers, whole.labels]), strict=True
        )
    ]
    with torch.no_grad():
        expected = network(whole)
        theirs = torch.cat([network(half) for half in cut], 1)
        assert (theirs - expected)[whole.mask].abs().max() > 0.1
        for part in as_processes(dialogues, 2):
            rows = [whole.ids.index(i) for i in part.ids]
            assert torch.allclose(network(part)[part.mask], expected[rows][whole.mask[rows]], atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_utterance_is_dealt_once_and_no_dialogue_is_cut(size, as_processes):
    dialogues = small_corpus(train=4).split("train")
    parts = as_processes(dialogues, size)
    known = [part for part in parts if part.labelled.any()]  # one without a dialogue of its own counts none
    assert sorted(i for part in known for i in part.ids) == sorted(d.id for d in dialogues)
    lengths = {i: int(n) for part in known for i, n in zip(part.ids, part.mask.sum(1), strict=True)}
    assert lengths == {d.id: len(d) for d in dialogues}


@pytest.mark.parametrize("refused", [0, 1])
def test_flags_that_are_refused_on_one_host_end_the_others_in_a_line(refused, features, tmp_path):
    """Process 0 keeps the store, as torchrun's first host does: it must not be gone before the others have looked."""

    def one_a_host(rank):
        os.environ["LOCAL_WORLD_SIZE"] = "1"
        if rank == refused:
            with pytest.raises(SystemExit):
                begin(lambda: sys.exit(2))
            (tmp_path / "said" / f"said{rank}").touch()
            os._exit(2)
        time.sleep(0.5)  # it has more to import

    argv = ["--features", features, *FLAGS]
    said = together(tmp_path / "said", argv, argv, before=one_a_host)
    assert [status for status, _ in said] == [2, 2]
    assert said[1 - refused][1].startswith("error: torchrun: a process on another host has ended")
    assert said[1 - refused][1].count("\n") == 1


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_stay_where_a_whole_batch_has_a_modality_once_or_not_at_all(count, monkeypatch):
    monkeypatch.setattr(parallel, "_factor", 1.0)  # within a step of several processes
    norm = ChannelNorm(2)
    norm.running_mean += 1
    assert torch.allclose(norm(torch.full((count, 2), 3.0)), torch.full((count, 2), 2.0))
    assert norm.running_mean.tolist() == norm.running_var.tolist() == [1, 1]


def test_a_refusal_is_one_line_where_nobody_hears_of_it(monkeypatch, capfd):
    """Torch's C++ tells of a store that does not answer in pages."""

    def unanswered(*_):
        os.write(2, b"frame #0: and so on")
        raise RuntimeError

    monkeypatch.setattr(parallel, "_open_store", unanswered)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parallel.leave_word()
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"


def test_several_processes_on_an_apple_gpu_are_refused_before_they_meet(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match="--device cpu"):
        parallel.join("mps")
