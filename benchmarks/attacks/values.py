"""Hostile values, and every place of nested content where they can stand."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np


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
