"""config.json, flags, names and directories of a stranger: a sample of what benchmarks/attack.py tries."""

import gc
import json
import random

import pytest
from attacks import runs
from attacks.driver import judge
from run_content import content, edit

from experiment.run_directory import read_config
from files import InputError


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """No child looks through what is imported for garbage: that copies it."""
    runs.made()
    gc.freeze()
    yield
    gc.unfreeze()


def held(kind, count, tmp_path):
    """Try so many of a class; a failure names its case."""
    every = list(getattr(runs, kind)())
    chosen = random.Random(0).sample(every, count)
    through = []
    for k, attack in enumerate(chosen):
        (tmp_path / str(k)).mkdir()
        if why := judge(attack, tmp_path / str(k), seconds=100):
            through.append(f"{attack.name}: {why}")
    assert through == [] and len(every) > count


def test_flags_with_odd_values_end_in_a_line(tmp_path):
    held("flags", 30, tmp_path)


def test_odd_names_end_in_a_line_and_write_nowhere_else(tmp_path):
    held("names", 10, tmp_path)


def test_tampered_configs_end_in_a_line_and_change_nothing_else(tmp_path):
    held("configs", 20, tmp_path)


def test_odd_directories_end_in_a_line_and_change_nothing_else(tmp_path):
    held("directories", 14, tmp_path)


def test_every_value_of_a_config_is_checked_by_type(tmp_path):
    """Not a sample: each place, with values of each type, read as --resume and --evaluate read it."""
    run = runs.copied("one", tmp_path)
    path, tried = run / "config.json", 0
    for _, odd in runs.tampered(json.loads(path.read_text())):
        path.write_bytes(odd.encode(errors="surrogateescape"))
        tried += 1
        try:
            read_config(run)
        except InputError as error:
            assert str(path) in str(error)
    assert tried > 60 * len(runs.ODD)


def test_a_tampered_config_is_seen(tmp_path):
    """The comparison that the fuzzing rests on sees one changed byte."""
    run = runs.copied("one", tmp_path)
    before = content(run)
    edit(run, {"seed": 1})
    assert content(run) != before
