"""Run directories of a stranger, flags, names, and streams of the scripts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import compare
import predict
import train_IEMOCAP
from attacks.driver import ROOT, Attack, shell
from attacks.features import write_ours
from attacks.values import IN_JSON, TEXTS, put
from experiment import page
from experiment.flags import build_parser, parse_args
from experiment.run import Run
from feature_files import write_nine_tuple
from synthetic import synthetic_corpus

QUICK = ["--epochs", "1", "--GAN-epochs", "1", "--fused-channels", "16", "--device", "cpu"]
QUICK += ["--no-pictures", "--no-tensorboard", "--checkpoint-every", "1"]
NEW = ["--features", "features.pkl", *QUICK]
LEFT_OUT = object()

# What stands in the place of every value of a config.json, besides what JSON has room for of the hostile values.
ODD = {
    **{name: x for name, x in IN_JSON.items() if name not in ("brackets", "200 deep", "4300 digits")},
    **{
        ascii(x): x for x in (0, 1, 2, 3, 10**9, 10**30, -(10**300), 0.5, 1e308, "x", "0", "/../../x", "../x", "/", "~")
    },
    **{ascii(x): x for x in ([1], ["x"], [None] * 3, ["a", "a"], {"x": 1}, {"": {}}, {"text": -1}, {"text": "0.5"})},
    **{ascii(x): x for x in ({"text": True}, {"\x1b": 1}, ["../../x", "/x"])},
    "many numbers": list(range(5000)),
    "left out": LEFT_OUT,
}
# The same for flags and names.
WORDS = [
    *(text for text in TEXTS.values() if "\0" not in text and "\ud800" not in text and len(text) < 10_000),
    *("0", "-1", "1", "1e3", "0x10", "1_0", "٣", "9" * 400, "-" + "9" * 400, "1e999", "nan", "inf", "-inf"),
    *(str(2**63), str(-(2**63) - 1), "1e-400", "x", "x" * 300, "x" * 5000, "a\nb", "\u202e", "\udcff", "\udcffx/y"),
    *("..", "../..", "/", "~", "~nobody/x", "/proc/self/mem", "/dev/zero", "a,b", ",", "a,a", "meta", "hpu", "xla"),
    *("privateuseone", "cuda:999", "cuda:9999", "cpu:1", "lazy", "text:", "visual:0.3", "visual:2", "sessions"),
    *("visual:0.3,visual:0.3", "text,text", "$(x)", "`x`", "<script>", "=1+1", "x\ty", "☃", "é" * 130),
]


def train(arguments: Sequence[str]) -> int:
    """``python train_IEMOCAP.py``."""
    return train_IEMOCAP.main(list(arguments))


def use(arguments: Sequence[str]) -> int:
    """``python predict.py``, on the CPU."""
    return predict.main([*arguments, "--device", "cpu"])


def contrast(arguments: Sequence[str]) -> int:
    """``python compare.py``."""
    return compare.main(list(arguments))


def remake(arguments: Sequence[str]) -> int:
    """``python -m experiment.page``."""
    return page.main(list(arguments))


@cache
def made() -> Path:
    """A folder with a feature file, and runs that were trained on it: ``one``, ``two`` (seeds) and ``stopped``."""
    kept = tempfile.TemporaryDirectory(prefix="attack-")
    made.kept = kept  # until the process ends
    here = Path.cwd()
    corpus = synthetic_corpus(train=6, test=2, mean_length=5, dims={"text": 8, "visual": 6, "acoustic": 5})
    write_nine_tuple(corpus, Path(kept.name) / "features.pkl")
    save = Run.save

    def stopping(run: Run, stage: str, *others: Any) -> None:
        save(run, stage, *others)
        raise KeyboardInterrupt

    try:
        os.chdir(kept.name)  # a run names its data as it was given, so that copies of both find each other
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ends = [train([*NEW, "--out", "one"]), train([*NEW, "--out", "two", "--seeds", "0,1"])]
            Run.save = stopping
            ends.append(train([*NEW, "--out", "stopped"]))
    finally:
        Run.save = save
        os.chdir(here)
    if ends != [0, 0, 130]:
        raise RuntimeError(f"no runs to attack: {ends}")
    return Path(kept.name)


def copied(name: str, folder: Path) -> Path:
    """A copy of one of the runs, named ``run``, beside its data."""
    shutil.copy(made() / "features.pkl", folder)
    return shutil.copytree(made() / name, folder / "run")


# config.json ----------------------------------------------------------------------------------------------------------


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in JSON, of lists the first two."""
    if path:
        yield path
    inner = (
        content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    )
    for step, value in inner:
        yield from places(value, (*path, step))


def without(content: Any, path: tuple[Any, ...]) -> Any:
    """Content that lacks the value in one place."""
    key, *rest = path
    if rest:
        return put(content, (key,), without(content[key], tuple(rest)))
    if isinstance(content, dict):
        return {k: v for k, v in content.items() if k != key}
    return [v for k, v in enumerate(content) if k != key]


def tampered(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was changed and the text of the config.json: every value replaced by odd ones, left out, or doubled."""
    for path in places(config):
        for name, value in ODD.items():
            changed = without(config, path) if value is LEFT_OUT else put(config, path, value)
            yield f"{'.'.join(map(str, path))} = {name}", json.dumps(changed)
    text = json.dumps(config)
    yield from {
        "empty": "",
        "cut off": text[:-5],
        "nested": "[" * 100_000,
        "nested objects": '{"a":' * 100_000,
        "a number of 5,000 digits": text.replace('"seed": 0', '"seed": ' + "1" * 5000),
        "twice the same name": '{"format": 1,' + text[1:],
        "not UTF-8": text[:-1] + "\udcff}",
        "a list": "[]",
        "a text": '"x"',
        "nothing": "null",
    }.items()


def configs() -> Iterator[Attack]:
    """Runs whose config.json was tampered with, resumed and evaluated."""
    for name in ("one", "two"):
        for what, odd in tampered(json.loads((made() / name / "config.json").read_text())):
            for flag in ("--resume", "--evaluate"):

                def make(folder: Path, name: str = name, odd: str = odd, flag: str = flag) -> list[str]:
                    (copied(name, folder) / "config.json").write_bytes(odd.encode(errors="surrogateescape"))
                    return [flag, "run"]

                yield Attack("configs", f"{name}: {flag}: {what}", make, train, may="run" * (flag == "--resume"))


# Flags and names ------------------------------------------------------------------------------------------------------


def flags() -> Iterator[Attack]:
    """Every flag with odd values; they are parsed and no more."""
    for flag in (a.option_strings[-1] for a in build_parser()._actions if a.nargs != 0 and a.option_strings):
        for word in WORDS:
            yield Attack(
                "flags",
                f"{flag} {word!a:.40}",
                lambda f, w=f"{flag}={word}": [w],
                lambda argv: parse_args(argv) and 0,
            )


def names() -> Iterator[Attack]:
    """Every file and folder that a flag names, by odd names; what is made stays in the folder."""
    beside = {
        "--features": QUICK,
        "--evaluate": [],
        "--resume": [],
        "--config": NEW,
        "--use-trained-GAN": NEW,
        "--export-fused": [*NEW, "--out", "made"],
        "--out": NEW,
    }
    for flag, others in beside.items():
        for word in WORDS:

            def make(folder: Path, word: str = word, flag: str = flag, others: Sequence[str] = others) -> list[str]:
                shutil.copy(made() / "features.pkl", folder)
                return [f"{flag}={word}", *others]

            yield Attack("names", f"{flag} {word!a:.40}", make, train)


# Directories ----------------------------------------------------------------------------------------------------------


def directories() -> Iterator[Attack]:
    """What --overwrite may not delete, and runs that hold links, damage, or what another command has left."""

    def on(
        name: str,
        change: Callable[[Path], Any],
        *arguments: str,
        run: str = "one",
        refuse: bool = True,
        may: str = "",
        command: Callable[[Sequence[str]], int] = train,
    ) -> Attack:
        def make(folder: Path) -> list[str]:
            directory = copied(run, folder)
            (folder / "victims").mkdir()
            for one in ("events.1", "last.pt", "best.safetensors", ".x.1.tmp", "report.json"):
                (folder / "victims" / one).write_text("theirs")
            change(directory)
            return arguments

        return Attack("directories", name, make, command, refuse=refuse, may=may)

    anew = [*NEW, "--overwrite", "--out", "run"]

    def aside(directory: Path, name: str, to: str = "../victims") -> None:
        if (directory / name).exists():
            (directory / name).rename(directory.parent / "aside")
        (directory / name).symlink_to(to)

    def emptied(directory: Path) -> None:
        shutil.rmtree(directory)
        directory.mkdir()

    for text in ("{}", '{"model_type": "bert"}', '{"settings": {}}', "[]", "not JSON", '{"format": 1}', ""):
        yield on(f"--overwrite of config.json {text}", lambda d, t=text: (d / "config.json").write_text(t), *anew)
        yield on(
            f"--overwrite of a folder with config.json {text} alone",
            lambda d, t=text: emptied(d) or (d / "config.json").write_text(t),
            *anew,
        )
    for stray in ("notes.txt", "checkpoints/mine.bin", "seed7/x", "data/x", ".git/HEAD", ".replaced/theirs"):

        def strange(directory: Path, stray: str = stray) -> None:
            (directory / stray).parent.mkdir(exist_ok=True)
            (directory / stray).write_text("theirs")

        yield on(f"--overwrite of a run with {stray}", strange, *anew)
    yield on("--overwrite of a run with a link", lambda d: (d / "link").symlink_to("../victims"), *anew)
    yield on("--overwrite of a link", lambda d: d.rename(d.parent / "real") and d.symlink_to("real"), *anew)
    for out in (".", "..", "~", "run/checkpoints/.."):
        yield on(f"--overwrite of {out}", lambda d: None, *NEW, "--overwrite", "--out", out)
    yield on(
        "--overwrite of what holds the features",
        lambda d: (d.parent / "features.pkl").rename(d / "features.pkl"),
        *["--features", "run/features.pkl", *QUICK, "--overwrite", "--out", "run"],
    )
    for out in ("features.pkl", "./features.pkl", "run/config.json", "run/report.json", "run", "nowhere/x"):
        yield on(f"export over {out}", lambda d: None, "--evaluate", "run", "--export-fused", out)
    for name in ("checkpoints", "tensorboard", "report.json", "config.json", "history.csv", "seed1"):
        for run in ("one", "stopped", "two"):
            yield on(
                f"{run}: {name} is a link", lambda d, n=name: aside(d, n), "--resume", "run", run=run, refuse=False
            )
    for name in ("report.txt", "report.json", "predictions.csv", "history.csv", "GAN_loss.csv", "checkpoints/last.pt"):
        for text in (None, "", "{", "[]", '{"test": 3}', '{"test": {"weighted_f1": NaN}}', "x" * 10**6, "a,b\n1,2\n"):

            def damaged(directory: Path, name: str = name, text: str | None = text) -> None:
                if text is None:
                    (directory / name).unlink(missing_ok=True)
                elif (directory / name).parent.exists():
                    (directory / name).write_text(text)

            for run in ("one", "stopped"):
                for flag in ("--resume", "--evaluate"):
                    yield on(
                        f"{run}: {flag}: {name} is {text!a:.30}", damaged, flag, "run", run=run, refuse=False, may="run"
                    )
    for name in ("best", "fusion", "standardiser"):
        for what in ("cut off", "changed", "empty", "another", "gone"):

            def spoilt(directory: Path, name: str = name, what: str = what) -> None:
                path = directory / "checkpoints" / f"{name}.safetensors"
                raw = bytearray(path.read_bytes())
                if what == "changed":
                    raw[-4:] = b"\xff\xff\xff\xff"  # a NaN
                if what == "another":
                    raw = bytearray(write_ours(directory.parent / "b").read_bytes())
                path.write_bytes({"cut off": raw[:-9], "empty": b""}.get(what, raw))
                if what == "gone":
                    path.unlink()

            yield on(f"{name}.safetensors is {what}", spoilt, "--evaluate", "run", refuse=False)
            yield on(f"--use-trained-GAN: {name} is {what}", spoilt, *NEW, "--use-trained-GAN", "run", refuse=False)

    def filled(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
        def edit(directory: Path) -> None:
            path = directory / "seed1" / "config.json"
            config = json.loads(path.read_text())
            change(config)
            path.write_text(json.dumps(config))

        return edit

    for name, change in {
        "another seed": lambda c: c["settings"]["run"].update(seed=7),
        "other epochs": lambda c: c["settings"]["classifier"].update(epochs=5),
        "other data": lambda c: c["features"].update(sha256="0" * 64),
        "nothing": lambda c: c.clear(),
    }.items():
        yield on(f"a seed that was filled with {name}", filled(change), "--resume", "run", run="two")
    for name, path, change in misread():
        for seeds in ((1,), (0, 1)):

            def spoilt(directory: Path, path: str = path, change: Any = change, seeds: Any = seeds) -> None:
                for seed in seeds:
                    one = directory / f"seed{seed}" / path
                    if path.endswith("json"):
                        report = json.loads(one.read_text())
                        change(report)
                        one.write_text(json.dumps(report))
                    else:
                        change(pd.read_csv(one)).to_csv(one, index=False)

            what, more = f"{path} of {len(seeds)} of 2 seeds: {name}", {"run": "two", "refuse": False}
            yield on(f"--resume: {what}", spoilt, "--resume", "run", may="run", **more)
            yield on(f"compare: {what}", spoilt, "run", "--out", "new", command=contrast, **more)
    for value in (5, True, "x", ["/../../x"], [{}], [10**400], [None], {"0": 1}):

        def planned(directory: Path, value: Any = value) -> None:
            config = json.loads((directory / "config.json").read_text())
            config["plan"]["seeds"] = value
            (directory / "config.json").write_text(json.dumps(config))

        for command, arguments in ((train, ["--evaluate", "run"]), (contrast, ["run"]), (use, ["run", "features.pkl"])):
            yield on(f"seeds {value!a:.20}", planned, *arguments, run="two", command=command)
    for name in ("best.safetensors", "fusion.safetensors", "standardiser.safetensors", "last.pt"):
        for size in (10**9, 60 * 10**9):

            def hollow(directory: Path, name: str = name, size: int = size) -> None:
                with (directory / "checkpoints" / name).open("wb") as stream:
                    stream.truncate(size)

            run, lines = "one", [["--evaluate", "run"], [*NEW, "--out", "new", "--use-trained-GAN", "run"]]
            if name == "last.pt":
                run, lines = "stopped", [["--resume", "run"]]
            for arguments in lines:
                yield on(f"{name} of {size} bytes of nothing", hollow, *arguments, run=run, refuse=False, may="run")
    for out in ("features.pkl", "run/config.json", "run/checkpoints/best.safetensors", "run", "link"):

        def linked(directory: Path) -> None:
            (directory.parent / "link").symlink_to("features.pkl")

        yield on(f"predict --out {out}", linked, "run", "features.pkl", "--out", out, command=use)
        yield on(f"page --out {out}", linked, "run", "--out", out, command=remake)
    for out in ("run/config.json", "run/predictions.csv"):
        yield on(f"compare --html {out}", lambda d: None, "run", "--html", out, command=contrast)


def misread() -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    """What a run says of itself, as another command reads it: what is wrong, the file, and the change."""
    one = {"f1": 1}
    for value in (3, "x", [1], {"x": 1}, {"x": one}, {"happy": {"f1": "x"}}, {"x" * 10**6: one}, {"\x1b": one}):
        yield f"per_class {value!a:.20}", "report.json", lambda r, v=value: r["test"].update(per_class=v)
    for value in (3, "x", {"weighted_f1": "x"}, {"weighted_f1": None}):
        yield f"chosen_on_test {value!a:.30}", "report.json", lambda r, v=value: r.update(chosen_on_test=v)
    for column in ("dialogue", "utterance", "turn", "speaker", "label", "predicted", "split", "p_happy"):
        yield f"no {column}", "predictions.csv", lambda t, c=column: t.drop(columns=c)
        for value in (99, -5, 1e300, np.nan, np.inf, "x", "\x1b[31m\u202e"):
            yield f"{column} = {value!a}", "predictions.csv", lambda t, c=column, v=value: t.assign(**{c: v})
    yield "no probabilities", "predictions.csv", lambda t: t[[c for c in t if not c.startswith("p_")]]
    yield "no rows", "predictions.csv", lambda t: t.iloc[:0]
    yield "every row twice", "predictions.csv", lambda t: pd.concat([t, t])
    yield "other classes", "predictions.csv", lambda t: t.rename(columns=lambda c: c + "\x1b" if c[:2] == "p_" else c)


# Streams --------------------------------------------------------------------------------------------------------------

FEATURES = "{python} -m feature_files"
TRAIN = "{python} {root}/train_IEMOCAP.py --features features.pkl --out run {quick}"
LINES = {
    **{f"inspect {end}": (f"{FEATURES} inspect a --plot a.png {end}", "a.png") for end in ("| true", "| head -1")},
    **{
        f"inspect {end}": (f"{FEATURES} inspect a --plot a.png {end}", "a.png")
        for end in ("> /dev/full", ">&-", "2>&-")
    },
    "inspect >&- 2>&- <&-": (f"{FEATURES} inspect a --plot a.png >&- 2>&- <&-", "a.png"),
    **{f"convert {end}": (f"{FEATURES} convert a b {end}", "b") for end in ("| true", "> /dev/full", ">&-", "2>&-")},
    "--help | true": (f"{FEATURES} --help | true", ""),
    "--help > /dev/full": (f"{FEATURES} --help > /dev/full", ""),
    "wrong file 2> /dev/full": (f"{FEATURES} inspect nowhere 2> /dev/full", ""),
    "wrong flag 2>&-": (f"{FEATURES} inspect --wrong 2>&-", ""),
    "no locale": (f"LC_ALL=C PYTHONIOENCODING=ascii {FEATURES} inspect a --plot a.png", "a.png"),
    **{f"train {end}": (f"{TRAIN} {end}", "run/report.json") for end in ("| true", "| head -1", "> /dev/full")},
    **{f"train {end}": (f"{TRAIN} {end}", "run/report.json") for end in (">&-", "2>&-", "2> /dev/full")},
    "train >&- 2>&- <&-": (f"{TRAIN} >&- 2>&- <&-", "run/report.json"),
    "train --help | true": (f"{TRAIN} --help | true", ""),
    "train --help > /dev/full": (f"{TRAIN} --help > /dev/full", ""),
    "train --epochs x 2>&-": (f"{TRAIN} --epochs x 2>&-", ""),
}


def streams() -> Iterator[Attack]:
    """Commands whose streams are closed, full or left: what they write is written all the same."""
    for name, (line, written) in LINES.items():

        def make(folder: Path, line: str = line) -> list[str]:
            shutil.copy(made() / "features.pkl", folder)
            write_ours(folder / "a")
            return [line.format(python=shlex.quote(sys.executable), root=shlex.quote(str(ROOT)), quick=" ".join(QUICK))]

        def wrote(folder: Path, written: str = written) -> str:
            return "" if (folder / written).exists() else "wrote nothing"

        yield Attack("streams", name, make, shell, check=wrote, seconds=120)
