"""Flags and settings: each reaches what it is for, JSON is read as flags are, and nothing heavy is loaded for them."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from small import SHORT, corpus, features, moved, small_corpus, train, weights, write

import train_IEMOCAP
from experiment import compare_flags, settings
from experiment.flags import build_parser, parse_args, readme_table
from experiment.settings import LAST_FLAT_COMMIT, Settings
from files import InputError

__all__ = ["corpus", "features"]  # fixtures

PROJECT = Path(train_IEMOCAP.__file__).parent
QUICK = [*SHORT, "--epochs", "1", "--GAN-epochs", "1"]


def line_of(capsys, *argv):
    """The one line with which flags are refused."""
    with pytest.raises(SystemExit) as stop:
        parse_args([str(a) for a in argv])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


# Every flag reaches its consumer --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(features, tmp_path_factory):
    """A finished run with every setting as it is, but for its size."""
    return train(tmp_path_factory.mktemp("runs") / "base", "--features", features, *QUICK)


class Ran:
    """A run with one flag more, beside the base."""

    def __init__(self, directory, base, told):
        self.directory, self.base, self.told = directory, base, told

    def config(self, *path):
        content = json.loads((self.directory / "config.json").read_text())
        for name in path:
            content = (content or {}).get(name)
        return content

    def learnt_otherwise(self, stage="best"):
        """The same network with other weights."""
        return bool(moved(weights(self.base, stage), weights(self.directory, stage)))

    def shape(self, name):
        """That of a weight; None if there is none."""
        found = weights(self.directory).get(name)
        return None if found is None else tuple(found.shape)

    def had(self, name):
        """The same of the base."""
        found = weights(self.base).get(name)
        return None if found is None else tuple(found.shape)

    def rows(self, name):
        return len(pd.read_csv(self.directory / name))

    def has(self, name):
        return (self.directory / name).exists() and not (self.base / name).exists()


def learnt(stage="best"):
    return lambda run: run.learnt_otherwise(stage)


def told(name, value):
    return lambda run: run.told[name] == value


def appears(name, shape):
    return lambda run: run.shape(name) == shape and run.had(name) is None


def vanishes(name):
    return lambda run: run.shape(name) is None and run.had(name) is not None


# A setting to flags that change it, and what shows that they arrived. A new setting needs a line here. What shows that
# of some of them cannot be the work of the others, so one run is enough for these; see TOGETHER.
REACHES = {
    "data.features": (["--features", "OTHER"], learnt()),
    "data.demo": (["--demo"], lambda run: run.config("features", "file") == "synthetic corpus"),
    "data.text_layers": (["--text-layers", "concat"], told("text_layers", "concat")),
    "data.target": (["--target", "sentiment"], told("target", "sentiment")),
    "data.missing": (["--missing", "mask"], told("missing", "mask")),
    "data.label_names": (
        ["--label-names", "a,b,c,d,e,f"],
        lambda run: run.config("corpus", "label_names") == list("abcdef"),
    ),
    "data.modalities": (
        ["--modalities", "text,audio"],
        lambda run: run.config("corpus", "dims") == {"text": 8, "acoustic": 5},
    ),
    "data.valid": (["--valid", "0.2"], lambda run: len(run.config("splits", "valid") or ()) == 2),
    "fusion.epochs": (["--GAN-epochs", "2"], lambda run: run.rows("GAN_loss.csv") == 2),
    "fusion.lr": (["--GAN-lr", "0.01"], learnt("fusion")),
    "fusion.weight": (["--GAN-weight", "0.5"], learnt("fusion")),
    "fusion.loss": (["--GAN-loss", "reference"], learnt("fusion")),
    "fusion.generator": (
        ["--generator", "transformer"],
        appears("fusion.generators.text.encoder.layers.1.linear1.weight", (512, 256)),
    ),
    "fusion.channels": (
        ["--fused-channels", "20"],
        lambda run: run.shape("fusion.generators.text.own.0.weight") == (12, 16),
    ),
    "fusion.dropout": (["--dropout", "0.1"], learnt()),
    "fusion.trained_run": (
        ["--use-trained-GAN", "BASE"],
        lambda run: not run.learnt_otherwise("fusion") and not (run.directory / "GAN_loss.csv").exists(),
    ),
    "fusion.more_epochs": (
        ["--use-trained-GAN", "BASE", "--continue-train-GAN-step", "2"],
        lambda run: run.rows("GAN_loss.csv") == 2 and run.learnt_otherwise("fusion"),
    ),
    "classifier.epochs": (["--epochs", "2"], lambda run: run.rows("history.csv") == 2),
    "classifier.lr": (["--lr", "0.01"], learnt()),
    "classifier.weight_decay": (["--weight-decay", "0.5"], learnt("fusion")),
    "classifier.window_past": (["--window-past", "1"], learnt()),
    "classifier.window_future": (["--window-future", "0"], learnt()),
    "classifier.causal": (["--causal"], learnt()),
    "classifier.speaker_layers": (
        ["--speaker-layers", "1"],
        vanishes("speaker_encoders.text.blocks.1.read.weight"),
    ),
    "classifier.graph_layers": (["--graph-layers", "3"], appears("classifier.convolutions.2.root", (16, 16))),
    "classifier.attention": (["--attention"], appears("classifier.attention.query.weight", (16, 16))),
    "classifier.focal": (["--focal", "2"], learnt()),
    "classifier.unimodal_loss": (["--unimodal-loss", "0.5"], learnt()),
    "classifier.session_logit_adjustment": (["--no-session-logit-adjustment"], learnt()),
    "classifier.class_weight": (["--class-weight"], learnt()),
    "augmentation.noise": (["--noise", "0"], learnt()),
    "augmentation.drop_utterances": (["--drop-utterances", "0"], learnt("fusion")),
    "augmentation.drop_modality": (["--drop-modality", "text:0.5"], learnt("fusion")),
    "run.seed": (["--seed", "1"], learnt()),
    "run.batch_size": (["--batch-size", "3"], learnt()),
    "run.device": (["--device", "auto"], told("device", "auto")),
    "run.deterministic": (["--deterministic"], told("deterministic", True)),
    "run.report_best_test": (
        ["--report-best-test"],
        lambda run: "chosen_on_test" in json.loads((run.directory / "report.json").read_text()),
    ),
    "run.checkpoint_every": (["--checkpoint-every", "7"], told("checkpoint_every", 7)),
    "run.tensorboard": (["--tensorboard"], lambda run: run.has("tensorboard")),
    "run.pictures": (["--pictures"], lambda run: run.has("report.html")),
    "run.figures": (["--figures", "svg"], lambda run: run.has("GAN_loss.svg") and not run.has("GAN_loss.png")),
    "run.calibrate": (["--calibrate", "2"], lambda run: run.config("calibration", "fitted_on") == "out of fold"),
}
TOGETHER = {
    "of data and run": [
        *("data.text_layers", "data.target", "data.missing", "data.label_names", "data.valid"),
        *("fusion.epochs", "fusion.channels", "classifier.epochs", "run.device", "run.deterministic"),
        *("run.report_best_test", "run.checkpoint_every", "run.tensorboard", "run.pictures", "run.figures"),
    ],
    "of the network": [
        *("data.demo", "data.modalities", "fusion.generator"),
        *("classifier.speaker_layers", "classifier.graph_layers", "classifier.attention", "run.calibrate"),
    ],
}
ALONE = {name: [name] for name in REACHES if not any(name in names for names in TOGETHER.values())}
# What the flags that are no settings do is shown in tests of their own.
SHOWN_BY = {
    "--config": "test_flags.py::test_settings_from_a_file_are_overridden_by_flags",
    "--out": "test_train.py::test_a_run_leaves_what_the_readme_lists",
    "--overwrite": "test_bad_input.py::test_overwrite_keeps_a_directory_that_is_no_run",
    "--resume": "test_train.py::test_ctrl_c_stops_after_the_step_and_resume_ends_as_if_nothing_had_been",
    "--seeds": "test_train.py::test_several_seeds_are_summarised",
    "--folds": "test_train.py::test_sessions_are_left_out_in_turn",
    "--folds-over": "test_train.py::test_sessions_are_left_out_in_turn",
    "--jobs": "test_jobs.py::test_jobs_have_the_bits_of_one_after_the_other",
    "--cluster": "test_jobs.py::test_a_killed_worker_of_a_cluster_gives_its_run_to_the_other",
    "--evaluate": "test_train.py::test_scoring_a_finished_run_again_gives_the_same_numbers",
    "--export-fused": "test_train.py::test_fused_features_load_as_the_field_loads_them",
    "--export-stage": "test_train.py::test_exported_features_of_stage_2",
    "--download": "test_download.py::test_",
    "--no-cuda": "test_flags.py::test_no_cuda_is_the_cpu",
}


def test_every_flag_that_is_documented_is_in_one_of_the_tables():
    with_flag = {name for name in settings.flat(Settings()) if name != "data.fold"}
    assert REACHES.keys() == with_flag
    documented = [a for a in build_parser()._actions if a.help != argparse.SUPPRESS and a.dest != "help"]
    assert {a.dest for a in documented if "." in a.dest} == with_flag
    assert {a.option_strings[0] for a in documented if "." not in a.dest} == SHOWN_BY.keys()
    for flag, where in SHOWN_BY.items():
        file, test = where.split("::")
        text = (PROJECT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {test}" in text, where
        assert flag.removeprefix("--") in text, where


@pytest.mark.parametrize("which", [*TOGETHER, *ALONE])
def test_every_setting_reaches_what_it_is_for(which, base, features, tmp_path, monkeypatch):
    names = (TOGETHER | ALONE)[which]
    flags = [flag for name in names for flag in REACHES[name][0]]
    places = {"BASE": base, "OTHER": write(small_corpus(seed=1), tmp_path / "other.pkl")}
    heard = {}

    def telling(real, **which):
        def tell(*args, **kwargs):
            given = {**dict(enumerate(args)), **kwargs}
            heard.update({as_: given[where] for as_, where in which.items() if where in given})
            return real(*args, **{k: v for k, v in kwargs.items() if k != "target"})

        return tell

    def patch(module, attribute, **which):
        monkeypatch.setattr(module, attribute, telling(getattr(module, attribute), **which))

    patch(train_IEMOCAP.feature_files, "read", text_layers="text_layers", target="target", missing="missing")
    patch(train_IEMOCAP.utils, "choose_device", device=0)
    patch(train_IEMOCAP.utils, "choose_determinism", deterministic=0)
    patch(train_IEMOCAP, "Run", checkpoint_every="checkpoint_every")
    monkeypatch.setattr("experiment.corpus.synthetic_corpus", small_corpus)
    data = [] if {"data.demo", "data.features"} & set(names) else ["--features", features]
    try:
        run = train(tmp_path / "run", *data, *QUICK, *[places.get(flag, flag) for flag in flags])
    finally:
        torch.use_deterministic_algorithms(False)
    for name in names:
        arrived = REACHES[name][1]
        assert arrived(Ran(run, base, heard)), name
        assert not arrived(Ran(base, base, {}.fromkeys(heard))), f"{name}: shows nothing"


def test_no_cuda_is_the_cpu():
    assert parse_args(["--demo", "--no-cuda"]).settings.run.device == "cpu"
    assert parse_args(["--demo", "--no-cuda", "--device", "cuda:1"]).settings.run.device == "cpu"


ALIASES = {
    "--l2 0.5": "--weight-decay 0.5",
    "--GAN-adversary 0.5": "--GAN-weight 0.5",
    "--party-blocks 1": "--speaker-layers 1",
    "--convolutions 1": "--graph-layers 1",
    "--no-session-shares": "--no-session-logit-adjustment",
    "--drop-utterance 0.1": "--drop-utterances 0.1",
    "--modalities audio,video": "--modalities acoustic,visual",
    "--drop-modality audio:0.1": "--drop-modality acoustic:0.1",
}


@pytest.mark.parametrize("old", ALIASES)
def test_what_flags_were_called_before_still_works(old):
    parsed = parse_args(["--demo", *old.split()])
    assert parsed == parse_args(["--demo", *ALIASES[old].split()])
    assert parsed.settings != Settings().replace(data__demo=True)


def test_a_probability_may_be_given_modality_by_modality():
    flags = ["--demo", "--drop-modality", "visual:0.3", "--drop-modality", "text:0.1,acoustic:0.2"]
    chances = parse_args(flags).settings.augmentation.drop_modality
    assert chances == {"visual": 0.3, "text": 0.1, "acoustic": 0.2}


# Settings from JSON ---------------------------------------------------------------------------------------------------


def test_settings_from_a_file_are_overridden_by_flags(base, features, tmp_path):
    found = parse_args(["--config", str(base / "config.json"), "--lr", "0.25"]).settings
    before = settings.from_file(base / "config.json")
    assert found == before.replace(classifier__lr=0.25)
    assert (before.fusion.channels, before.run.batch_size, before.data.features) == (16, 6, str(features))
    again = train(tmp_path / "again", "--config", base / "config.json")
    assert not moved(weights(base), weights(again))


def test_settings_that_are_left_out_have_their_defaults(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"classifier": {"lr": 1, "window_past": 3}, "data": {"modalities": ["audio", "text"]}}')
    expected = Settings().replace(
        classifier__lr=1.0, classifier__window_past=3, data__modalities=("acoustic", "text"), data__demo=True
    )
    assert parse_args(["--config", str(path), "--demo"]).settings == expected


def test_every_setting_is_the_same_after_json():
    every = Settings().replace(
        data__modalities=("text", "visual"),
        data__label_names=("a", "b"),
        data__fold=("sessions", "train", "Ses01"),
        data__features="x.pkl",
        fusion__trained_run="run",
        augmentation__drop_modality={"text": 0.25},
        fusion__more_epochs=2,
        run__figures=("png", "svg"),
    )
    content = json.loads(json.dumps(settings.dataclasses.asdict(every)))
    assert settings.from_json(content, "x") == every


WRONG = {
    '{"classifier": {"speed": 1}}': "classifier: 'speed' is no setting",
    '{"optimizer": {"lr": 1}}': "'optimizer' is no group of settings",
    '{"classifier": 3}': "'classifier' is no group of settings",
    '{"classifier": {"lr": "fast"}}': "classifier: lr: 'fast' is no float",
    '{"classifier": {"lr": true}}': "classifier: lr: True is no float",
    '{"classifier": {"lr": -1}}': "classifier: lr: -1 is out of range",
    '{"classifier": {"lr": NaN}}': "classifier: lr: nan is out of range",
    '{"classifier": {"lr": null}}': "classifier: lr: None is no float",
    '{"classifier": {"epochs": 1.5}}': "classifier: epochs: 1.5 is no int",
    '{"classifier": {"attention": 1}}': "classifier: attention: 1 is neither true nor false",
    '{"fusion": {"channels": 11}}': "--fused-channels 11",
    '{"fusion": {"loss": "wasserstein"}}': "fusion: loss: invalid choice: 'wasserstein'",
    '{"data": {"modalities": "text"}}': "data: modalities: 'text' is no list of modalities",
    '{"data": {"modalities": ["smell"]}}': "data: modalities: unknown modality 'smell'",
    '{"data": {"features": 3}}': "data: features: 3 is not a name",
    '{"data": {"fold": ["sessions", "all", "../up"]}}': "data: fold: '../up' is not a fold's name",
    '{"augmentation": {"drop_modality": {"text": 2}}}': "augmentation: drop_modality: 2 is out of range",
    '{"augmentation": {"drop_modality": ["text"]}}': "augmentation: drop_modality:",
    '{"run": {"seed": -1}}': "run: seed: -1 is out of range",
    "[1]": "a list where a dictionary belongs",
    "settings": "not valid JSON",
}


@pytest.mark.parametrize("content", WRONG)
def test_wrong_settings_in_a_file_are_refused_by_name(content, tmp_path, capsys):
    path = tmp_path / "wrong.json"
    path.write_text(content)
    line = line_of(capsys, "--demo", "--config", path)
    assert str(path) in line and WRONG[content] in line


def test_a_file_of_settings_that_is_not_there_is_refused(tmp_path, capsys):
    assert "cannot be read" in line_of(capsys, "--demo", "--config", tmp_path / "none.json")


@pytest.mark.parametrize("flag", ["--config", "--resume", "--evaluate"])
def test_a_run_of_an_older_version_is_refused_with_the_commit_that_reads_it(flag, tmp_path, capsys):
    old = tmp_path / "old" / "config.json"
    old.parent.mkdir()
    old.write_text(json.dumps({"format": "gan-ffn-run-1", "flags": {"lr": 0.1}}))
    try:
        status = train_IEMOCAP.main(["--no-cuda", flag, str(old if flag == "--config" else old.parent)])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1
    assert f"{old}: a run of an older version; read it with commit {LAST_FLAT_COMMIT}" in error


def test_resume_and_evaluate_take_no_settings_from_elsewhere(base, capsys):
    for flag in ("--resume", "--evaluate"):
        assert "leave" in line_of(capsys, flag, base, "--config", base / "config.json")


@pytest.mark.parametrize("flag", ["--label-names a,b,c,d,e,f", "--target sentiment", "--text-layers concat"])
def test_the_demo_takes_no_flags_of_a_file(flag, capsys):
    assert f"{flag.split()[0]} is for a file" in line_of(capsys, "--demo", *flag.split())


def test_a_damaged_plan_of_seeds_is_refused(base, tmp_path, capsys):
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "plan": {"seeds": ["x"]}}))
    assert "plan: no seeds and folds of a run" in line_of(capsys, "--resume", tmp_path)


# README and help ------------------------------------------------------------------------------------------------------


def test_the_flags_in_the_readme_are_those_there_are():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- flags -->\n(.*?)<!-- /flags -->", readme, re.DOTALL)
    assert table and table.group(1) == readme_table()


def script(*argv, code="", **options):
    """The script in a process of its own."""
    command = [sys.executable, *(["-c", code] if code else [str(PROJECT / "train_IEMOCAP.py")]), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, **options)


LOADED = f"""
import runpy, sys
sys.path.insert(0, {str(PROJECT)!r})
try:
    runpy.run_path({str(PROJECT / "train_IEMOCAP.py")!r}, run_name="__main__")
finally:
    print("loaded:", *sorted({{"torch", "numpy", "pandas", "sklearn", "matplotlib"}} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("argv", "status"), [(["--help"], 0), (["--lr", "fast"], 2), (["--no-such-flag"], 2), (["--resume", "none"], 2)]
)
def test_help_and_wrong_flags_are_answered_before_anything_heavy_is_loaded(argv, status, tmp_path):
    done = script(*argv, code=LOADED, cwd=tmp_path)
    assert done.returncode == status
    assert done.stdout.endswith("loaded:\n")
    assert ("--GAN-epochs" in done.stdout) if status == 0 else done.stderr.count("\n") == 1


def test_help_says_every_default_and_fits_the_screen():
    text = build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 110
    for name, value in settings.flat(Settings()).items():
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            assert f"(default:{value})" in "".join(text.split()), name


def test_help_shows_no_empty_default():
    assert "[]" not in compare_flags.build_parser().format_help()


def test_installing_says_in_a_line_that_the_project_is_run_from_its_clone(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROJECT / "setup.py"), "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode and done.stderr.count("\n") == 1
    assert "run it from its clone" in done.stderr and not any(tmp_path.iterdir())


def test_settings_are_frozen_and_their_files_are_refused_as_input_errors(tmp_path):
    with pytest.raises(settings.dataclasses.FrozenInstanceError):
        Settings().run.seed = 1
    with pytest.raises(InputError):
        settings.from_file(tmp_path / "none.json")
