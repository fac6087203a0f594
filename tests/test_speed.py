"""What a job costs: operations of an epoch, and the memory of the process that is measured."""

import subprocess
import sys
from pathlib import Path

import flops  # of benchmarks/
from small import corpus, features

import train_IEMOCAP
from model import AdversarialFusion

__all__ = ["corpus", "features"]  # fixtures


def test_operations_are_those_of_an_epoch_and_the_peak_is_that_of_the_job_s_device(features, monkeypatch):
    asked = []
    monkeypatch.setattr(flops, "peak", lambda device: asked.append(device) or 1.0)
    monkeypatch.setattr(flops.utils, "choose_device", lambda name: "cuda")
    flags = ["--features", str(features), "--fused-channels", "16"]
    found = flops.count(flags)
    assert asked == ["cuda"] and min(found["stage 1"], found["stage 2"]) > 0
    # What is done once around the epochs is done twice.
    settle, known = AdversarialFusion.settle, train_IEMOCAP.with_shared
    monkeypatch.setattr(AdversarialFusion, "settle", lambda f, loader: [settle(f, iter(x)) for x in [[*loader]] * 2])
    monkeypatch.setattr(train_IEMOCAP, "with_shared", lambda *given: [known(*given) for _ in range(2)][1])
    assert flops.count(flags) == found


WATCH = """
import sys, speed
for size in (200, 1):
    print(speed.watch([sys.executable, "-c", f"x = bytearray({size} << 20)"], []).peak_mebibytes)
print(speed.watch([sys.executable, "-c", "raise SystemExit(3)"], []).status)
"""


def test_memory_is_that_of_the_process_which_was_watched_alone():
    command = [sys.executable, "-c", WATCH]  # from a small process: the size of its parent counts into a child's
    said = subprocess.run(command, cwd=Path(flops.__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
    large, small, status = map(float, said.stdout.split())
    assert small < 100 < 200 < large and status == 3


def test_operations_are_those_of_the_stages_and_dialogues_that_the_job_has(corpus, features, monkeypatch):
    monkeypatch.setattr(flops, "peak", lambda device: 1.0)
    flags = ["--features", str(features), "--fused-channels", "16", "--device", "cpu"]
    found = flops.count([*flags, "--GAN-epochs", "0", "--valid", "0.5"])
    assert found["stage 1"] == 0 and found["utterances"] < sum(map(len, corpus.split("train")))
    # All of three generators learns: four maps of 256 channels to 256, each multiplied by three times a step.
    assert found["stage 2"] > found["utterances"] * 3 * 4 * 3 * 2 * 256**2
