"""Hostile feature files, and flags of ``python -m feature_files``."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import feature_files
from attacks.driver import Attack
from attacks.values import IN_JSON, IN_NPY, KEYS, TEXTS, VALUES, dumps, keyed, npy, places, put

LENGTHS = {"Ses01F_a": 2, "Ses05F_b": 1}

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
                return ["inspect", str(folder / "a"), "--missing", missing]

            yield Attack("liars", f"{value} under an unchanged header, {missing}", make, refuse=True)


def oddities() -> Iterator[Attack]:
    """Files that are none, and names that cannot be."""

    def inspects(name: str, lay: Callable[[Path], Any]) -> Attack:
        def make(folder: Path) -> list[str]:
            lay(folder / "a.pkl")
            return ["inspect", "a.pkl"]

        return Attack("oddities", name, make, refuse=True)

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

    def ours(name: str, *words: str, before: Callable[[Path], Any] = lambda f: None, refuse: bool = True) -> Attack:
        """A command on a container of ours, ``a``."""

        def make(folder: Path) -> list[str]:
            write_ours(folder / "a")
            before(folder)
            return list(words)

        return Attack("oddities", name, make, refuse=refuse)

    # Nothing here may harm the machine where the code does not hold: no device but a pipe of our own is written to.
    yield ours("convert to a pipe", "convert", "a", "p", before=lambda f: os.mkfifo(f / "p"))
    yield ours("convert to root", "convert", "a", "/")
    for name, argument in (("nothing", ""), ("dot", "."), ("up", "..")):
        yield ours(f"convert to {name}", "convert", "a", argument)
        yield ours(f"draw to {name}", "inspect", "a", "--plot", argument)
        yield Attack("oddities", f"read {name}", lambda f, a=argument: ["inspect", a], refuse=True)
        yield Attack("oddities", f"convert from {name}", lambda f, a=argument: ["convert", a, "out"], refuse=True)
    yield ours("convert onto itself", "convert", "a", "a")
    yield ours("draw onto itself", "inspect", "a", "--plot", "a")
    yield ours("a long name", "convert", "a", "x" * 300)
    yield ours("a name that is no text", "convert", "a", "\udcff", refuse=False)
    yield ours("layers", "convert", "a", "b", "--text-layers", "9" * 5000)
    yield ours("target", "convert", "a", "b", "--target", "\x1b")
