"""A small run, and how to spoil it: for the tests of run directories and their fuzzing."""

import json
import shutil

import train_IEMOCAP
from feature_files import write_nine_tuple
from synthetic import synthetic_corpus

DIMS = {"text": 8, "visual": 6, "acoustic": 5}
SMALL = ["--fused-channels", "16", "--device", "cpu", "--no-pictures", "--no-tensorboard"]
QUICK = ["--epochs", "2", "--GAN-epochs", "1", "--checkpoint-every", "1", *SMALL]


def small_corpus(**changes):
    return synthetic_corpus(**{"train": 12, "test": 2, "mean_length": 9, "dims": DIMS, **changes})


def features_in(folder, **changes):
    path = folder / "small.pkl"
    write_nine_tuple(small_corpus(**changes), path)
    return path


def main(*argv):
    """The script's exit status; wrong flags end in the same way as on the command line."""
    try:
        return train_IEMOCAP.main([str(a) for a in argv])
    except SystemExit as stop:
        return stop.code


def edit(directory, change):
    """Change a run's config.json in place: by a function, or by a dictionary of new values at its top."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config) if callable(change) else config.update(change)
    path.write_text(json.dumps(config))


def copy(directory, to):
    return shutil.copytree(directory, to, symlinks=True)


def content(directory):
    """Every file of a directory with its bytes."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
