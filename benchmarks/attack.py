"""Attack what reads strangers' files, and print what was tried and what held.

    python benchmarks/attack.py [--only values,bombs] [--share 0.1]

Held means: it was read, or refused in one line with exit status 2; no traceback, nothing unprintable on the terminal,
nothing half-written left, and all of it within 20 seconds and 512 MB. Feature files so far, in six classes: values in
every place of every layout, texts, bombs, containers that lie, odd files and flags, streams.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import feature_files  # noqa: E402
from files import is_printable  # noqa: E402

SECONDS, MEMORY = 20, 2**29
LENGTHS = {"Ses01F_a": 2, "Ses05F_b": 1}


@dataclass(frozen=True)
class Attack:
    """One file or folder, and what is done with it.

    Attributes:
        kind: The class it is counted under.
        name: What it is, for the table of those that got through.
        make: Writes it into an empty folder and returns the arguments of ``python -m feature_files``.
    """

    kind: str
    name: str
    make: Callable[[Path], list[str]]


# Sound files of every layout, small -----------------------------------------------------------------------------------


def nine(width: tuple[int, int, int] = (2, 2, 2)) -> list:
    """The nine usual items; lists where others have arrays, so that every number is a place of its own."""
    rows = [{i: [[0.5 + k] * d for k in range(n)] for i, n in LENGTHS.items()} for d in width]
    return [
        {i: [f"{i}_F{k}" for k in range(n)] for i, n in LENGTHS.items()},
        {i: ["F", "M"][:n] for i, n in LENGTHS.items()},
        {i: [1, 2][:n] for i, n in LENGTHS.items()},
        *rows,
        {i: ["hi", "ho"][:n] for i, n in LENGTHS.items()},
        ["Ses01F_a"],
        ["Ses05F_b"],
    ]


def pickles() -> dict[str, Any]:
    """Layout and variant to what its pickle holds."""
    ids, speakers, labels, text, audio, visual, sentences, train, test = nine()
    layers = [text] * 4
    arrays = tuple({i: np.array(r) for i, r in t.items()} if k in (3, 4, 5) else t for k, t in enumerate(nine()))
    names = {"text": text, "audio": audio, "visual": visual, "speakers": speakers, "labels": labels}
    samples = [{"vid": i, "sentence": sentences[i]} | {k: t[i] for k, t in names.items()} for i in LENGTHS]
    return {
        "nine-tuple": tuple(nine()),
        "nine-tuple of arrays": arrays,
        "nine-tuple of text": (ids, speakers, labels, text, sentences, train, test),
        "meld-9": (ids, speakers, labels, text, audio, sentences, train, test, labels),
        "mmgcn-meld": (*nine(), labels),
        "cosmic": (speakers, labels, *layers, sentences, train, test, []),
        "cosmic of meld": (speakers, labels, labels, *layers, sentences, train, test, []),
        "sdt": (ids, speakers, labels, *layers, audio, visual, sentences, train, test),
        "sdt of meld": (ids, speakers, labels, *layers, audio, visual, sentences, train, test, labels),
        "graphsmile": (ids, speakers, labels, labels, *layers, audio, visual, sentences, train, test, 0),
        "cogmen": {"train": samples[:1], "dev": [], "test": samples[1:]},
    }


def write_folder(folder: Path, layout: str, content: Any) -> Path:
    """Write a layout that is a folder; its content is what the attack may have changed."""
    if layout == "m3net":
        (folder / "a.pkl").write_bytes(dumps(content[0]))
        (folder / "b.pkl").write_bytes(dumps(content[1]))
    elif layout == "multiemo":
        for name, part in zip(("Speakers", "TextFeatures", "AudioFeatures"), content, strict=True):
            (folder / f"{name}.pkl").write_bytes(dumps(part))
    elif layout == "dag-erc":
        for split, part in zip(("train", "dev", "test"), content["splits"], strict=True):
            (folder / f"{split}_data_roberta.json.feature").write_text(json.dumps(part))
        (folder / "label_vocab.pkl").write_bytes(dumps(content["vocabulary"]))
    else:
        if layout == "gcnet":
            (folder / "label.pkl").write_bytes(dumps(content["labels"]))
        else:
            write_npz(folder / "label.npz", content["labels"])
        for modality, rows in content["features"].items():
            (folder / modality).mkdir()
            for name, value in rows.items():
                (folder / modality / f"{name}.npy").write_bytes(npy(value))
        return next(folder.glob("label.*"))
    return folder


def folders() -> dict[str, Any]:
    """Layout to what `write_folder` takes."""
    pickled = pickles()
    utterance = {"text": "a", "speaker": "F", "label": "x", "cls": [1.0, 2.0]}
    names = [name for row in nine()[0].values() for name in row]
    features = {m: {name: np.ones((3, 2), np.float32) for name in names} for m in ("text", "audio")}
    ids, speakers, labels, _, _, _, sentences, train, test = nine()
    return {
        "m3net": [pickled["nine-tuple"], pickled["cosmic"]],
        "multiemo": [pickled["nine-tuple"], nine()[3], nine()[4]],
        "dag-erc": {
            "splits": [[[utterance, utterance]], [[{**utterance, "label": "y"}]], [[utterance]]],
            "vocabulary": {"itos": ["y", "x"]},
        },
        "gcnet": {"labels": [ids, labels, speakers, sentences, set(train), set(test)], "features": features},
        "merbench": {"labels": {name: {"emo": 1, "val": -10} for name in names}, "features": features},
    }


def dumps(content: Any) -> bytes:
    """A pickle, with the code points and truth values that no Python writes put in after the fact."""
    raw = pickle.dumps(content, 4)
    return raw.replace("\u7fff".encode("utf-32-le"), b"\xff\xff\xff\x7f").replace(
        b"\x01\x00\x01TRUTH", b"\x05\xff\x01TRUTH"
    )


def npy(value: Any) -> bytes:
    """A ``.npy``; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    stream = io.BytesIO()
    np.save(stream, value if isinstance(value, np.ndarray) else np.array(value, dtype=object), allow_pickle=True)
    return stream.getvalue().replace("\u7fff".encode("utf-32-le"), b"\xff\xff\xff\x7f")


def write_npz(path: Path, whole_corpus: Any, method: int = zipfile.ZIP_DEFLATED) -> None:
    """What MERBench's label file is."""
    with zipfile.ZipFile(path, "w", method) as archive:
        array = np.empty((), object)
        array[()] = whole_corpus
        archive.writestr("whole_corpus.npy", npy(array))


ABOUT = {
    "dialogues": [["a", 2], ["b", 1]],
    "speakers": ["F", "M", "F"],
    "sentences": ["x", "y", "z"],
    "utterances": ["a_0", "a_1", "b_0"],
    "splits": {"train": ["a"], "test": ["b"]},
    "label_names": ["calm", "cross"],
    "provenance": {"from": [{"file": "a.pkl", "sha256": "0"}], "target": "emotion"},
}


def write_ours(path: Path, about: Any = ABOUT, metadata: dict | None = None, **tensors: np.ndarray) -> Path:
    """A container with this metadata; made by hand, so nothing is checked."""
    tensors = {"text": np.ones((3, 4), np.float32), "labels": np.array([0, 1, 0])} | tensors
    save_file(tensors, path, {"format": "gan-ffn-features-1", "corpus": json.dumps(about)} | (metadata or {}))
    return path


# Values in every place ------------------------------------------------------------------------------------------------


def holds_itself(kind: type) -> Any:
    """A container that contains itself."""
    made = np.empty(1, object) if kind is np.ndarray else kind()
    if kind is list:
        made.append(made)
    else:
        made["a" if kind is dict else 0] = made
    return made


def nested(depth: int) -> list:
    """Lists within lists."""
    made: list = []
    for _ in range(depth):
        made = [made]
    return made


def laughs(levels: int = 40) -> list:
    """A list that has the next one twice, and so on: small to write, without end to look at."""
    made: list = [0]
    for _ in range(levels):
        made = [made, made]
    return made


TEXTS = {
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "bell": "\x07",
    "return": "a\r=1+1",
    "null": "a\0b",
    "half a pair": "\ud800",
    "right to left": "\u202egnp.exe\u2066",
    "separator": "a\u2028b",
    "TeX": "$\\frac{1}{$",
    "dollars": "$a$ \\$ $",
    "empty": "",
    "spaces": "   ",
    "long": "x" * 100_000,
    "digits": "9" * 5000,
}
VALUES = {
    **TEXTS,
    "none": None,
    "true": True,
    "-1": -1,
    "2^31": 2**31,
    "2^63": 2**63,
    "400 digits": 10**400,
    "5000 digits": 10**5000,
    "nan": float("nan"),
    "inf": float("inf"),
    "1e300": 1e300,
    "complex": 1j,
    "bytes": b"\xff\x1b",
    "list": [],
    "tuple": (),
    "dict": {},
    "dict of numbers": {1: 2, "1": 3},
    "set": set(),
    "frozen set": frozenset(["a", 1]),
    "rows of nothing": [[]],
    "list of none": [None, None],
    "holds itself": holds_itself(list),
    "dict holds itself": holds_itself(dict),
    "array holds itself": holds_itself(np.ndarray),
    "200 deep": nested(200),
    "laughs": laughs(),
    "array (0,)": np.zeros(0),
    "array (5, 0)": np.zeros((5, 0)),
    "array (0, 0)": np.zeros((0, 0)),
    "array ()": np.array(1.0),
    "array (2, 2, 2)": np.ones((2, 2, 2)),
    "array (10^9, 0)": np.zeros((10**9, 0), np.int8),
    "array (0, 10^9)": np.zeros((0, 10**9), np.int8),
    "array of nan": np.full((2, 2), np.nan),
    "array of float16": np.ones((2, 2), np.float16),
    "array of long double": np.full(2, np.longdouble("1e4000")),
    "array of big endian": np.ones((2, 2), ">f4"),
    "array of truths": np.array([True, False]),
    "array of texts": np.array(["a\x1b", "b"]),
    "array of no characters": np.array(["\u7fff", "a"]),
    "array of bytes": np.array([b"a", b"b"]),
    "array of objects": np.array([1, None, "a"], dtype=object),
    "array of lists": np.array([[1], None], dtype=object),
    "array of complex": np.ones(2, complex),
    "array of dates": np.array(["2020-01-01"], "M8[D]"),
    "array of structures": np.zeros(2, [("a", "f4")]),
    "number of numpy": np.int64(1),
    "uint64": np.uint64(2**64 - 1),
    "truth of numpy": np.bool_(True),
    "list of arrays": [np.ones(2), np.ones(2)],
    "list of ragged arrays": [np.ones(2), np.ones(3)],
    "list of matrices": [np.ones((2, 2))],
}
IN_JSON = {
    k: v for k, v in VALUES.items() if isinstance(v, str | bool | float | list | dict | None) and "self" not in k
}
IN_JSON = {
    k: v
    for k, v in IN_JSON.items()
    if k not in ("laughs", "list of arrays", "list of ragged arrays", "list of matrices")
}
IN_JSON |= {"400 digits": 10**400, "4300 digits": 10**4299, "2^63": 2**63, "brackets": nested(900), "empties": [[]] * 5}
IN_NPY = {
    **{k: v for k, v in VALUES.items() if isinstance(v, np.ndarray) and v.size < 100},
    "a dictionary": {"a": 1},
    "nothing": b"",
    "zeros": bytes(500),
    "cut off": npy(np.ones((3, 2)))[:90],
    "shape (-1,)": npy(np.ones((3, 2))).replace(b"(3, 2)", b"(-1,) "),
    "shape of (10^9, 0)": npy(np.ones((3, 2))).replace(b"(3, 2)", b"(10**9,0)"),
    "shape of (999999999, 0)": npy(np.zeros((5, 0))).replace(b"(5, 0), }       ", b"(999999999, 0)}"),
    "Python": npy(np.ones((3, 2))).replace(b"(3, 2)", b"open()"),
    "pickled list": b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(80)
    + pickle.dumps([1]),
}


def places(content: Any, depth: int = 4) -> Iterator[tuple]:
    """Paths to every value of nested content; of many alike, the first two."""
    yield ()
    if depth and isinstance(content, dict):
        keys = list(content)[:2] if len(content) < 5 and not {"text", "emo"} & content.keys() else list(content)
        keys = keys if len(content) < 5 or isinstance(next(iter(content.values())), list) else keys[:3]
        inner = [(k, content[k]) for k in keys]
    elif depth and isinstance(content, list | tuple):
        inner = list(enumerate(content))[: 2 if len(content) < 6 else None]
    else:
        inner = []
    for key, value in inner:
        for path in places(value, depth - 1):
            yield (key, *path)


def put(content: Any, path: tuple, value: Any) -> Any:
    """Content with another value in one place."""
    if not path:
        return value
    key, *rest = path
    if isinstance(content, dict):
        return content | {key: put(content[key], tuple(rest), value)}
    items = list(content)
    items[key] = put(items[key], tuple(rest), value)
    return type(content)(items)


def keyed(content: Any, path: tuple, key: Any) -> Any:
    """Content whose dictionary in one place has another key for its first."""
    table = content
    for step in path:
        table = table[step]
    if not isinstance(table, dict) or not table:
        return None
    return put(content, path, {key if k == 0 else old: v for k, (old, v) in enumerate(table.items())})


KEYS = {
    k: v
    for k, v in VALUES.items()
    if isinstance(v, str | bytes | bool | float | None | np.generic) or k in ("-1", "2^63", "tuple")
}


def values() -> Iterator[Attack]:
    """Every value in every place of every layout, pickled or not, and every key in every dictionary."""

    def pickled(content: Any) -> Callable[[Path], list[str]]:
        def make(folder: Path) -> list[str]:
            (folder / "a.pkl").write_bytes(dumps(content))
            return ["inspect", str(folder / "a.pkl")]

        return make

    def in_folder(layout: str, content: Any) -> Callable[[Path], list[str]]:
        return lambda folder: ["inspect", str(write_folder(folder, layout, content))]

    def container(about: Any) -> Callable[[Path], list[str]]:
        return lambda folder: ["inspect", str(write_ours(folder / "a.safetensors", about))]

    for layout, content in pickles().items():
        for path in places(content):
            for name, value in VALUES.items():
                yield Attack("values", f"{layout} {path} {name}", pickled(put(content, path, value)))
            for name, key in KEYS.items():
                if (changed := keyed(content, path, key)) is not None:
                    yield Attack("values", f"{layout} {path} key {name}", pickled(changed))
    for layout, content in folders().items():
        for path in places(content, 5):
            inside = path[:1] if layout in ("gcnet", "merbench", "dag-erc") else ("pickle",)
            if (inside in ((), ("features",)) and len(path) < 3) or path in ((), ("splits",), ("vocabulary",)):
                continue
            if (isinstance(content, list) and len(path) < 1) or (path[:1] == ("splits",) and len(path) < 2):
                continue
            fitting = IN_NPY if inside == ("features",) else IN_JSON if inside == ("splits",) else VALUES
            if inside == ("features",) and len(path) > 3:
                continue
            for name, value in fitting.items():
                yield Attack("values", f"{layout} {path} {name}", in_folder(layout, put(content, path, value)))
    for path in places(ABOUT, 4):
        for name, value in IN_JSON.items():
            yield Attack("values", f"gan-ffn {path} {name}", container(put(ABOUT, path, value)))


# Texts ----------------------------------------------------------------------------------------------------------------


def texts() -> Iterator[Attack]:
    """Hostile text in every name; looked at, drawn and converted."""
    about_places = {
        "class": lambda t: ABOUT | {"label_names": ["calm", t]},
        "every class": lambda t: ABOUT | {"label_names": [t, t + "b"]},
        "split": lambda t: ABOUT | {"splits": ABOUT["splits"] | {t: []}},
        "dialogue": lambda t: ABOUT | {"dialogues": [[t, 2], ["b", 1]], "splits": {"train": [t], "test": ["b"]}},
        "utterance": lambda t: ABOUT | {"utterances": [t, "y", "z"]},
        "speaker": lambda t: ABOUT | {"speakers": [t, "y", "z"]},
        "sentence": lambda t: ABOUT | {"sentences": [t, "y", "z"]},
        "provenance": lambda t: ABOUT | {"provenance": {t: t, "from": [t]}},
    }
    for where, about in about_places.items():
        for name, text in TEXTS.items():
            content = about(text)

            def ours(folder: Path, about: Any = content) -> Path:
                return write_ours(folder / "a.safetensors", about)

            yield Attack(
                "texts", f"{where} {name}", lambda f, w=ours: ["inspect", str(w(f)), "--plot", str(f / "a.png")]
            )
            yield Attack("texts", f"{where} {name} json", lambda f, w=ours: ["inspect", str(w(f)), "--json"])
            for ending in ("pkl", "safetensors"):
                out = f"out.{ending}"
                yield Attack(
                    "texts", f"{where} {name} to {ending}", lambda f, w=ours, o=out: ["convert", str(w(f)), str(f / o)]
                )
    for name, text in TEXTS.items():
        if "\0" in text or len(text) > 1000:
            continue

        def named(folder: Path, text: str = text) -> list[str]:
            path = folder / (os.fsdecode(text.encode("utf-8", "surrogatepass")).replace("/", "_") or "x")
            return ["inspect", str(write_ours(path)), "--plot", str(folder / "a.png")]

        yield Attack("texts", f"file name {name}", named)
        yield Attack(
            "texts", f"flag {name}", lambda f, t=text: ["inspect", str(write_ours(f / "a")), "--label-names", f"a,{t}"]
        )


# Bombs ----------------------------------------------------------------------------------------------------------------


def bombs(megabytes: int = 10) -> Iterator[Attack]:
    """Small files that would unfold into large ones, or keep a reader busy; the largest of so many megabytes."""

    def of(name: str, raw: Callable[[], bytes], ending: str = "pkl") -> Attack:
        def make(folder: Path) -> list[str]:
            (folder / f"a.{ending}").write_bytes(raw())
            return ["inspect", str(folder / f"a.{ending}")]

        return Attack("bombs", name, make)

    def tables(**changes: Any) -> Callable[[], bytes]:
        names = ("ids", "speakers", "labels", "text", "audio", "visual", "sentences", "train", "test")
        return lambda: dumps(tuple(changes.get(name, item) for name, item in zip(names, nine(), strict=True)))

    million, mb = megabytes * 10**5, f"{megabytes} MB"
    for code, what in ((b"]", "lists"), (b"}", "dictionaries"), (b"\x8f", "sets"), (b"(", "marks"), (b")", "tuples")):
        yield of(f"{mb} of empty {what}", lambda c=code: b"\x80\x04(" + c * (10 * million) + b"l.")
    yield of(f"{mb} of steps", lambda: b"\x80\x04N" + b"20" * (5 * million) + b".")
    yield of(f"{mb} of truths", lambda: b"\x80\x04(" + b"\x88" * (10 * million) + b"l.")
    yield of(f"{mb} of memos", lambda: b"\x80\x04N" + b"\x94" * (10 * million) + b".")
    yield of(
        f"{mb} of memos by number",
        lambda: b"\x80\x04N" + b"".join(b"r%s" % k.to_bytes(4, "little") for k in range(2 * million)) + b".",
    )
    yield of(f"{mb} of frozen sets", lambda: b"\x80\x04(" + b"(\x91" * (5 * million) + b"l.")
    yield of(f"{mb} of tuples of one", lambda: b"\x80\x04N" + b"\x85" * (10 * million) + b".")
    yield of(f"{mb} of samples", lambda: b"\x80\x02cx\nSample\nq\x00(" + b"h\x00)\x81" * (3 * million) + b"l.")
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    long = b"\x8a\xfa" + b"\x7f" * 250
    yield of(
        "a shape of 200,000 numbers",
        lambda: b"\x80\x02" + head + b"(K\x01(" + long * (megabytes * 20_000) + b"t" + dtype + b"\x89U\x00tb.",
    )
    yield of(
        f"a number of {mb}",
        lambda: b"\x80\x02\x8b" + (10 * million).to_bytes(4, "little") + b"\x7f" * (10 * million) + b".",
    )
    yield of(f"a number of {mb} of digits", lambda: b"I" + b"9" * (10 * million) + b"\n.")
    for shape in ((10**9, 0), (10**9, 0, 5), (0, 10**9), (10**5, 10**5, 0)):
        empty = np.zeros(shape, np.int8)
        for field in ("ids", "speakers", "labels", "text", "sentences"):
            yield of(f"{field} of shape {shape}", tables(**{field: dict.fromkeys(LENGTHS, empty)}))
        for field in ("train", "test"):
            yield of(f"{field} of shape {shape}", tables(**{field: empty}))
    wide = {i: np.zeros((n, 10**6), np.int8) for i, n in LENGTHS.items()}
    yield of("a row as wide as the file", tables(text=wide))
    for n in (2000, 20_000):

        def repeated(n: int = n) -> bytes:
            one = {"labels": np.zeros(n, np.int8), "text": np.zeros((n, 9), np.int8), "speakers": ["F"] * n}
            return whole(
                {f"d{k}": 1 for k in range(2000)}, **{f: {f"d{k}": x for k in range(2000)} for f, x in one.items()}
            )

        yield of(f"one dialogue of {n} two thousand times", repeated)
    for size in (10**6, 400):
        for field in ("ids", "speakers", "sentences"):

            def shared_text(size: int = size, field: str = field) -> bytes:
                return whole({"a": 1000, "b": 1}, **{field: {"a": ["x" * size] * 1000, "b": ["y"]}})

            yield of(f"one text of {size} for all {field}", shared_text)
            yield Attack(
                "bombs",
                f"one text of {size} for all {field} converted",
                lambda f, w=shared_text: (
                    (f / "a.pkl").write_bytes(w()) and ["convert", str(f / "a.pkl"), str(f / "out.safetensors")]
                ),
            )
    yield of("a dialogue's long name for all", lambda: whole({"x" * 450: 200_000, "b": 1}))
    yield of("50,000 classes", lambda: whole({"a": 1, "b": 1}, labels={"a": [50_000], "b": [1]}))
    many = list(range(50_000))
    yield of("50,000 classes, no gap", lambda: whole({"a": 50_000, "b": 1}, labels={"a": many, "b": [0]}))
    lonely = {f"d{k}": 1 for k in range(50_000)}
    yield of("50,000 dialogues in no split", lambda: whole(lonely, train=["d0"], test=["d1"]))
    yield of(
        "25,000 dialogues in a split", lambda: whole(lonely, train=[f"d{k}" for k in range(25_000)], test=["d30000"])
    )
    for missing in ("refuse", "mask"):

        def gone(folder: Path, missing: str = missing) -> list[str]:
            text = {"d0": np.ones((1, 500_000), np.int8)} | {f"d{k}": None for k in range(1, 2000)}
            (folder / "a.pkl").write_bytes(whole(dict.fromkeys(text, 1), text=text))
            return ["inspect", str(folder / "a.pkl"), "--missing", missing]

        yield Attack("bombs", f"wide rows that are missing, {missing}", gone)
    for method, what in ((zipfile.ZIP_BZIP2, "bz2"), (zipfile.ZIP_LZMA, "lzma"), (zipfile.ZIP_DEFLATED, "deflate")):

        def packed(folder: Path, method: int = method) -> list[str]:
            with (
                zipfile.ZipFile(folder / "label.npz", "w", method) as archive,
                archive.open("whole_corpus.npy", "w") as member,
            ):
                for _ in range(30 * megabytes):
                    member.write(bytes(10**6))
            return ["inspect", str(folder / "label.npz")]

        yield Attack("bombs", f"{30 * megabytes} MB in a .npz by {what}", packed)
    for text, what in (
        ("[" * 100_000, "deep"),
        ("[" + "[]," * million + "[]]", "wide"),
        ("{" + '"a":{},' * million + '"b":{}}', "objects"),
    ):

        def in_json(folder: Path, text: str = text) -> list[str]:
            for split in ("train", "dev", "test"):
                (folder / f"{split}_data_roberta.json.feature").write_text(text)
            return ["inspect", str(folder)]

        yield Attack("bombs", f"JSON {what}", in_json)
        yield Attack(
            "bombs",
            f"JSON {what} in a container",
            lambda f, t=text: ["inspect", str(write_ours(f / "a", metadata={"corpus": t}))],
        )

    def one_file_for_all(folder: Path) -> list[str]:
        n = 20_000
        columns = [
            {"a": ["u"] * n, "b": ["v"]},
            {"a": [0] * n, "b": [0]},
            {"a": ["F"] * n, "b": ["F"]},
            {"a": ["s"] * n, "b": ["s"]},
        ]
        (folder / "a.pkl").write_bytes(dumps([*columns, {"a"}, {"b"}]))
        (folder / "text").mkdir()
        for name in "uv":
            np.save(folder / "text" / f"{name}.npy", np.ones((20_000, 50)))
        return ["inspect", str(folder / "a.pkl")]

    yield Attack("bombs", "one file of an utterance for all", one_file_for_all)


def whole(lengths: dict[str, int], **changes: Any) -> bytes:
    """A 9-tuple of dialogues of these lengths, the first to train on and the second to test; fields by name."""
    ids = list(lengths)
    fields = {
        "ids": {},
        "speakers": {i: ["F"] * n for i, n in lengths.items()},
        "labels": {i: [0] * n for i, n in lengths.items()},
        "text": {i: np.ones((n, 1), np.int8) for i, n in lengths.items()},
        "audio": {},
        "visual": {},
        "sentences": {i: ["s"] * n for i, n in lengths.items()},
        "train": ids[:1],
        "test": ids[1:2],
    }
    return dumps(tuple((fields | changes).values()))


# Containers that lie, odd files, flags --------------------------------------------------------------------------------


def liars() -> Iterator[Attack]:
    """Containers whose header says what the tensors do not."""
    for value in (np.nan, np.inf, -np.inf, 7.0):
        for missing in ("refuse", "mask"):

            def make(folder: Path, value: float = value, missing: str = missing) -> list[str]:
                write_ours(folder / "by hand.safetensors")
                feature_files.write_container(feature_files.read(folder / "by hand.safetensors"), folder / "a")
                raw = bytearray((folder / "a").read_bytes())
                at = raw.index(np.ones(12, np.float32).tobytes())
                raw[at : at + 4] = np.float32(value).tobytes()
                (folder / "a").write_bytes(raw)
                return ["!inspect", str(folder / "a"), "--missing", missing]

            yield Attack("liars", f"{value} under an unchanged header, {missing}", make)


def oddities() -> Iterator[Attack]:
    """Files that are none, and names that cannot be."""

    def inspects(name: str, make: Callable[[Path], Any], must_fail: bool = True) -> Attack:
        def made(folder: Path) -> list[str]:
            make(folder / "a.pkl")
            return ["!inspect" if must_fail else "inspect", str(folder / "a.pkl")]

        return Attack("oddities", name, made)

    def sparse(path: Path, start: bytes = b"", size: int = 100 * 2**30) -> None:
        with path.open("wb") as stream:
            stream.write(start)
            stream.truncate(size)

    yield inspects("pipe", os.mkfifo)
    yield inspects("loop of links", lambda p: p.symlink_to(p))
    yield inspects("link to nowhere", lambda p: p.symlink_to("nowhere"))
    for device in ("/dev/zero", "/dev/null", "/proc/self/mem", "/proc/self/maps"):
        yield inspects(device, lambda p, d=device: p.symlink_to(d))
    yield inspects("100 GB of nothing", sparse)
    yield inspects("3 GB of nothing", lambda p: sparse(p, size=3 * 2**30))
    yield inspects("100 GB after a pickle's start", lambda p: sparse(p, b"\x80\x04"))
    yield inspects("100 GB after a container's start", lambda p: sparse(p, (2**20).to_bytes(8, "little") + b"{"))
    yield inspects("an empty file", lambda p: p.touch())
    yield inspects("a folder", lambda p: p.mkdir())
    # Nothing here may harm the machine where the code does not hold: no device but a pipe of our own is written to.
    yield Attack(
        "oddities",
        "convert to a pipe",
        lambda f: os.mkfifo(f / "p") or ["!convert", str(write_ours(f / "a")), str(f / "p")],
    )
    yield Attack("oddities", "convert to root", lambda f: ["!convert", str(write_ours(f / "a")), "/"])
    for name, argument in (("nothing", ""), ("dot", "."), ("up", "..")):
        yield Attack("oddities", f"convert to {name}", lambda f, a=argument: ["!convert", str(write_ours(f / "a")), a])
        yield Attack(
            "oddities", f"draw to {name}", lambda f, a=argument: ["!inspect", str(write_ours(f / "a")), "--plot", a]
        )
        yield Attack("oddities", f"read {name}", lambda f, a=argument: ["!inspect", a])
        yield Attack("oddities", f"convert from {name}", lambda f, a=argument: ["!convert", a, str(f / "out")])
    yield Attack("oddities", "convert onto itself", lambda f: ["!convert", str(write_ours(f / "a")), str(f / "a")])
    yield Attack(
        "oddities", "draw onto itself", lambda f: ["!inspect", str(write_ours(f / "a.png")), "--plot", str(f / "a.png")]
    )
    yield Attack("oddities", "a long name", lambda f: ["!convert", str(write_ours(f / "a")), str(f / ("x" * 300))])
    yield Attack(
        "oddities", "a name that is no text", lambda f: ["convert", str(write_ours(f / "a")), str(f / "\udcff")]
    )
    yield Attack(
        "oddities",
        "layers",
        lambda f: ["!convert", str(write_ours(f / "a")), str(f / "b"), "--text-layers", "9" * 5000],
    )
    yield Attack(
        "oddities", "target", lambda f: ["!convert", str(write_ours(f / "a")), str(f / "b"), "--target", "\x1b"]
    )


KINDS = {"values": values, "texts": texts, "bombs": bombs, "liars": liars, "oddities": oddities}
STREAMS = {
    "inspect | true": ("{python} -m feature_files inspect {file} --plot {out} | true", True),
    "inspect | head -1": ("{python} -m feature_files inspect {file} --plot {out} | head -1", True),
    "inspect > /dev/full": ("{python} -m feature_files inspect {file} --plot {out} > /dev/full", True),
    "inspect >&-": ("{python} -m feature_files inspect {file} --plot {out} >&-", True),
    "inspect 2>&-": ("{python} -m feature_files inspect {file} --plot {out} 2>&-", True),
    "inspect >&- 2>&- <&-": ("{python} -m feature_files inspect {file} --plot {out} >&- 2>&- <&-", True),
    "convert | true": ("{python} -m feature_files convert {file} {out} | true", True),
    "convert > /dev/full": ("{python} -m feature_files convert {file} {out} > /dev/full", True),
    "convert >&-": ("{python} -m feature_files convert {file} {out} >&-", True),
    "convert 2>&-": ("{python} -m feature_files convert {file} {out} 2>&-", True),
    "--help | true": ("{python} -m feature_files --help | true", False),
    "--help > /dev/full": ("{python} -m feature_files --help > /dev/full", False),
    "wrong file 2> /dev/full": ("{python} -m feature_files inspect {out} 2> /dev/full", False),
    "wrong flag 2>&-": ("{python} -m feature_files inspect --wrong 2>&-", False),
    "no locale": ("LC_ALL=C PYTHONIOENCODING=ascii {python} -m feature_files inspect {file} --plot {out}", True),
}


def judge(arguments: list[str], folder: Path, seconds: int = SECONDS, memory: int = MEMORY) -> str:
    """Why a command did not hold; empty where it did. It runs in a child, so that nothing can happen to us.

    A command that begins with ``!`` must be refused.
    """
    must_fail = arguments[0].startswith("!")
    arguments = [arguments[0].lstrip("!"), *arguments[1:]]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            status = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(seconds)
                resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
                os.chdir(folder)
                status = feature_files.main(arguments)
            except SystemExit as done:
                status = done.code
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        _, waited, used = os.wait4(child, 0)
        out.seek(0)
        err.seek(0)
        shown, complaint = (stream.read().decode("utf-8", "replace") for stream in (out, err))
    if os.WIFSIGNALED(waited):
        return f"killed by signal {os.WTERMSIG(waited)} (14 is the time limit)"
    status = os.WEXITSTATUS(waited)
    if status not in (0, 2):
        return f"status {status}: {' '.join(complaint.split())[-150:]!a}"
    if complaint.count("\n") > 1 or len(complaint) > 2500:
        return f"{complaint.count(chr(10))} lines, {len(complaint)} characters: {complaint[:150]!a}"
    if not all(map(is_printable, (shown + complaint).replace("\n", ""))):
        return f"shown raw: {complaint + shown!a:.150}"
    if used.ru_maxrss * 1024 - base > memory:
        return f"{(used.ru_maxrss * 1024 - base) >> 20} MB"
    if must_fail and not status:
        return "was accepted"
    if left := [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]:
        return f"left {left[0]!a}"
    return ""


def try_one(attack: Attack) -> str:
    """Why an attack got through; empty where it held."""
    with tempfile.TemporaryDirectory(prefix="attack-") as outer:
        folder = Path(outer) / "in"
        folder.mkdir()
        return judge(attack.make(folder), folder)


def try_stream(name: str) -> str:
    """Why a command whose streams are not as usual did not hold."""
    line, writes = STREAMS[name]
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        out = Path(folder) / ("out.png" if "inspect" in name or "no locale" in name else "out.safetensors")
        line = line.format(python=sys.executable, file=write_ours(Path(folder) / "a"), out=out)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=ROOT,
            capture_output=True,
            timeout=120,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        shown = (done.stdout + done.stderr).decode("utf-8", "replace")
        if "Traceback" in shown or "Exception ignored" in shown:
            return shown[-200:]
        if writes and not out.exists():
            return "wrote nothing"
        return "" if done.returncode in (0, 2) else f"status {done.returncode}"


def main() -> None:
    """Try them all, and print a row a class."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="A,B", help=f"classes, of {','.join([*KINDS, 'streams'])}")
    parser.add_argument("--share", type=float, default=1.0, help="the part of each class's attacks to try")
    parser.add_argument("--seed", type=int, default=0, help="which part")
    args = parser.parse_args()
    feature_files.main(["inspect", "/nowhere"])  # everything is imported before the first child
    chosen = random.Random(args.seed)
    through = []
    print(f"{'class':<12}{'tried':>8}{'held':>8}")
    for kind in [*KINDS, "streams"]:
        if args.only and kind not in args.only.split(","):
            continue
        tried = held = 0
        for attack in STREAMS if kind == "streams" else KINDS[kind]():
            if chosen.random() >= args.share:
                continue
            tried += 1
            why = try_stream(attack) if kind == "streams" else try_one(attack)
            held += not why
            if why:
                through.append((kind, attack if kind == "streams" else attack.name, why))
        print(f"{kind:<12}{tried:>8}{held:>8}", flush=True)
    for kind, name, why in through:
        print(f"\n{kind}: {name!a:.120}\n    {why!a:.400}")
    sys.exit(bool(through))


if __name__ == "__main__":
    main()
