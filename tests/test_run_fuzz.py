"""config.json, flags and names of a stranger: a sample of what benchmarks/attack_runs.py tries, every time another."""

import json
import time

import pytest
from attack_runs import VALUES, TooLong, attack_configs, attack_flags, attack_names, bounded, tampered
from run_content import content, edit, features_in, main

from files import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    features_in(folder, train=6, mean_length=5).rename(folder / "features.pkl")
    return folder


def seed():
    return int(time.time()) // 86_400  # another sample every day; a failure names its case


def through(outcomes):
    return [f"{o.what}: {o.why}" for o in outcomes if not o.held]


def test_flags_with_odd_values_end_in_a_line():
    assert through(attack_flags(400, seed())) == []


def test_odd_names_end_in_a_line_and_write_nowhere_else(folder):
    assert through(attack_names(folder, 60, seed())) == []


def test_tampered_configs_end_in_a_line_and_change_nothing_else(folder):
    assert through(attack_configs(folder, 90, seed())) == []


def test_every_value_of_a_config_is_checked_by_type(folder):
    """Not a sample: each place, with values of each type, read as --resume and --evaluate read it."""
    from pathlib import Path

    from experiment.run_directory import read_config

    directory = folder / "checked"
    flags = ["--epochs", "1", "--GAN-epochs", "1", "--fused-channels", "16", "--device", "cpu", "--no-tensorboard"]
    assert main("--features", folder / "features.pkl", "--out", directory, *flags, "--no-pictures") == 0
    path = Path(directory / "config.json")
    text, tried = path.read_text(), 0
    for _, odd in tampered(json.loads(text)):
        path.write_bytes(odd.encode(errors="surrogateescape"))
        tried += 1
        try:
            read_config(directory)
        except InputError as error:
            assert str(path) in str(error)
    path.write_text(text)
    assert tried > 60 * len(VALUES)


def test_the_bounds_are_in_force():
    with pytest.raises(TooLong), bounded(seconds=1):
        while True:
            pass
    with pytest.raises(MemoryError), bounded(memory=10**8):
        bytearray(10**9)


def test_a_tampered_config_is_seen(folder):
    """The comparison that the fuzzing rests on sees one changed byte."""
    before = content(folder / "checked")
    edit(folder / "checked", {"seed": 1})
    assert content(folder / "checked") != before
