"""The shell lines of the README and of docs/predict.md, as they are written, on small files of the names in them."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from documented import ROOT, run, shell_lines
from small import small_corpus, write

from synthetic import synthetic_corpus


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IEMOCAP_features").mkdir()
    corpus = small_corpus()
    for name in ("IEMOCAP_features/IEMOCAP_features.pkl", "new.pkl"):
        write(corpus, tmp_path / name)
    two = {i: replace(d, labels=d.labels % 2) for i, d in corpus.dialogues.items()}
    write(replace(corpus, dialogues=two), tmp_path / "FILE")
    return tmp_path


def test_the_chinese_readme_is_in_step():
    one, other = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    assert [len(level) for level in re.findall("^#+", one, re.M)] == [len(x) for x in re.findall("^#+", other, re.M)]

    def code(text):
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return [[line.partition("#")[0].strip() for line in block.splitlines()] for block in blocks]

    assert code(one) == code(other)
    rows = [re.findall(r"^\| (`--.*?` \| .*?) \|", text, re.M) for text in (one, other)]
    assert rows[0] == rows[1] and len(rows[0]) > 10
    tables = [[line.count("|") for line in text.splitlines() if line.startswith("|")] for text in (one, other)]
    assert tables[0] == tables[1]
    scores = [
        [re.findall(r"\d+\.\d+", line) for line in text.splitlines() if "IEMOCAP" in line] for text in (one, other)
    ]
    assert [x for x in scores[0] if len(x) > 3] == [x for x in scores[1] if len(x) > 3]


def test_the_lines_of_the_readme_run_as_written(folder, capsys, monkeypatch):
    small = synthetic_corpus(train=8, test=4, mean_length=8)
    monkeypatch.setattr("experiment.corpus.synthetic_corpus", lambda *_, **__: small)  # what --demo trains on
    elsewhere = ("--download", "extract_features", "runs/mine")  # the last two: test_extract.py
    lines = [line for line in shell_lines("README.md") if not any(word in line for word in elsewhere)]
    assert len(lines) == 5
    for line in lines:
        run(line)
    assert len(list((folder / "runs" / "three").glob("seed*/report.json"))) == 3
    assert "cross" in capsys.readouterr().out


def test_the_lines_of_predict_run_as_written(folder, capsys, monkeypatch):
    run("python train_IEMOCAP.py --features new.pkl --out runs/first")
    run("python train_IEMOCAP.py --features new.pkl --seed 1 --out runs/second")
    shutil.copy(folder / "runs" / "second" / "predictions.csv", folder / "somebody.csv")
    small = small_corpus()
    write(small, folder / "FILE")
    dialogue = next(iter(small.dialogues.values()))
    turns = [
        {"dialogue": "d", "speaker": speaker, "features": {m: x[k].tolist() for m, x in dialogue.features.items()}}
        for k, speaker in enumerate(dialogue.speakers)
    ]
    stdin = "".join(json.dumps(turn) + "\n" for turn in turns)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    elsewhere = ("-m pip", "--export")  # test_predict_export.py
    lines = [line for line in shell_lines("docs/predict.md") if not any(word in line for word in elsewhere)]
    assert {line.split()[1] for line in lines} == {"predict.py", "train_IEMOCAP.py", "compare.py"}
    answers = ""
    for line in lines:
        capsys.readouterr()
        run(line)
        answers += capsys.readouterr().out if "--stream" in line else ""
    assert [json.loads(line)["turn"] for line in answers.splitlines()] == list(range(1, len(turns) + 1))
    assert len(pd.read_csv(folder / "predictions.csv")) == sum(map(len, small.dialogues.values()))
    assert list((folder / "runs" / "comparison").iterdir())


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_refuses_an_older_python_before_pip_does(tmp_path):
    """A Mac's own is 3.9, and pip would say no more than that there is no such torch."""
    older = tmp_path / "python"
    older.write_text(
        f'#!/bin/sh\nexec {sys.executable} -Sc "import sys; sys.version_info = 3, 9; exec(sys.argv[2])" "$@"'
    )
    older.chmod(0o755)
    (tmp_path / "requirements.txt").touch()
    command = ["make", "--no-print-directory", "-f", ROOT / "Makefile", f"PYTHON={older}"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode and made.stderr.startswith("Python 3.11 or newer is needed") and not made.stdout
