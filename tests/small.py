"""A small corpus, short runs, and how runs are compared."""

import pytest
import torch
from safetensors.torch import load_file

import train_IEMOCAP
from feature_files import write_nine_tuple
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}
BARE = ["--no-pictures", "--no-tensorboard", "--device", "cpu"]
SHORT = ["--epochs", "2", "--GAN-epochs", "2", "--fused-channels", "16", "--batch-size", "6", *BARE]


def small_corpus(**changes):
    return synthetic_corpus(**{"train": 10, "test": 2, "mean_length": 8, "dims": DIMS, **changes})


def write(corpus, path):
    write_nine_tuple(corpus, path)
    return path


def train(out, *argv, status=0):
    """Run the script; the run directory."""
    try:
        ended = train_IEMOCAP.main([*map(str, argv), "--out", str(out)])
    except SystemExit as stop:
        ended = stop.code
    assert ended == status
    return out


def ran(main, argv, capsys):
    """Exit status of a script's main, what it printed, and its complaints."""
    capsys.readouterr()
    try:
        status = main([str(a) for a in argv])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out, said.err


def weights(directory, name="best"):
    return load_file(directory / "checkpoints" / f"{name}.safetensors")


def same(one, other):
    """Whether named tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def moved(one, other):
    """Names of tensors that differ between two sets which must have the same names and shapes."""
    assert {k: x.shape for k, x in one.items()} == {k: x.shape for k, x in other.items()}
    return {k for k in one if not torch.equal(one[k], other[k])}


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def corpus():
    return small_corpus()


@pytest.fixture(scope="module")
def features(corpus, tmp_path_factory):
    return write(corpus, tmp_path_factory.mktemp("features") / "small.pkl")
