"""Pickles that try to run code, to grow without end, or are damaged: none has an effect, each gets one line."""

import collections
import functools
import io
import os
import pickle
import struct

import numpy as np
import pytest

from feature_files import safe_pickle
from files import InputError


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


def asks_for(module, name, *args):
    """A call of a function that need not be here, with string arguments."""
    quoted = b"".join(b"S%r\n" % arg for arg in args)
    return f"c{module}\n{name}\n".encode() + b"(" + quoted + b"tR."


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return "file:///etc/passwd" if obj == "here" else None


def persistent(protocol):
    stream = io.BytesIO()
    Persistent(stream, protocol).dump(["here"])
    return stream.getvalue()


def object_array(payload):
    return np.array([1, payload], dtype=object)


def bits(flips):
    raw = bytearray(pickle.dumps({"a": np.arange(20.0)}, 4))
    for k in flips:
        raw[k % len(raw)] ^= 1 << (k % 8)
    return bytes(raw)


NUMPY_ARRAY = pickle.dumps(np.arange(4.0), 2)
NESTED = b"(K\x01" + b"".join(b"q%c(h%ch%ct" % (k, k, k) for k in range(100))


def hostile(trace):
    """Name to pickle, and what its refusal must name."""
    touch = f"touch {trace}"
    array = np.arange(4.0)
    return {
        "os.system": (pickle.dumps(Call(os.system, touch)), "system"),
        "os.system of an older protocol": (pickle.dumps(Call(os.system, touch), 0), "system"),
        "posix.system": (asks_for("posix", "system", touch), "posix.system"),
        "subprocess.Popen": (asks_for("subprocess", "Popen", touch), "subprocess.Popen"),
        "builtins.eval": (pickle.dumps(Call(eval, f"open({str(trace)!r}, 'w')")), "eval"),
        "builtins.exec": (pickle.dumps(Call(exec, f"open({str(trace)!r}, 'w')")), "exec"),
        "__builtin__.eval of Python 2": (asks_for("__builtin__", "eval", f"open({str(trace)!r}, 'w')"), "eval"),
        "builtins.open": (pickle.dumps(Call(open, str(trace), "w")), "open"),
        "builtins.getattr": (pickle.dumps(Call(getattr, "", "format")), "getattr"),
        "builtins.__import__": (pickle.dumps(Call(__import__, "antigravity")), "__import__"),
        "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0elib.npyio.load\x93.", "numpy.lib.npyio.load"),
        "a dotted path through an admitted module": (
            b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x10scalar.__class__\x93.",
            "scalar.__class__",
        ),
        "nested reduce": (pickle.dumps([{"x": [Call(Call, os.system, touch)]}]), "Call"),
        "a call inside an array": (pickle.dumps(object_array(Call(os.system, touch))), "system"),
        "a call as a key": (pickle.dumps({"a": 1} | {Call(os.system, touch): 2}), "system"),
        "a call of what a call returned": (asks_for("functools", "partial", "x")[:-1] + b")R.", "functools.partial"),
        "functools.partial": (pickle.dumps(functools.partial(os.system, touch)), "partial"),
        "operator.attrgetter": (asks_for("operator", "attrgetter", "system"), "attrgetter"),
        "numpy.load": (pickle.dumps(Call(np.load, str(trace))), "load"),
        "numpy.fromfile": (pickle.dumps(Call(np.fromfile, "/etc/passwd")), "fromfile"),
        "numpy.memmap": (asks_for("numpy", "memmap", str(trace)), "numpy.memmap"),
        "numpy.savetxt": (pickle.dumps(Call(np.savetxt, str(trace), [1])), "savetxt"),
        "numpy.genfromtxt": (asks_for("numpy", "genfromtxt", "/etc/passwd"), "genfromtxt"),
        "numpy.core's runstring": (asks_for("numpy.testing", "runstring", touch), "numpy.testing.runstring"),
        "numpy.f2py": (asks_for("numpy.f2py", "compile", touch), "numpy.f2py"),
        "pickle.loads in a pickle": (pickle.dumps(Call(pickle.loads, asks_for("os", "system", touch))), "loads"),
        "_codecs.encode to another codec": (asks_for("_codecs", "encode", touch, "rot13"), "latin1"),
        "_codecs.decode": (asks_for("_codecs", "decode", touch, "hex"), "_codecs.decode"),
        "torch's storage loader": (asks_for("torch.storage", "_load_from_bytes", "x"), "_load_from_bytes"),
        "collections.OrderedDict": (pickle.dumps(collections.OrderedDict(a=1)), "OrderedDict"),
        "a class by NEWOBJ": (pickle.dumps(collections.Counter("a"), 2), "Counter"),
        "a class by INST": (f"(S'{touch}'\nios\nsystem\n.".encode(), "os.system"),
        "a class by OBJ": (f"(cos\nsystem\nS'{touch}'\no.".encode(), "os.system"),
        "an admitted name by OBJ": (b"(cnumpy\nndarray\n(K\x05to.", "odd class"),
        "a Sample with arguments": (f"(cx\nSample\nS'{touch}'\no.".encode(), "odd class"),
        "an extension code": (b"\x80\x02\x82\x01.", "EXT1"),
        "a persistent id": (persistent(4), "BINPERSID"),
        "a persistent id, protocol 0": (persistent(0), "PERSID"),
        "an out-of-band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "state for a function": (
            b"cnumpy.core.multiarray\n_reconstruct\n(dS'__defaults__'\nI1\nsb.",
            "state for a _reconstruct",
        ),
        "slot state for a function": (b"c_codecs\nencode\n(N(dS'__class__'\nI1\nstb.", "state for a encode"),
        "state for a list": (b"(l(dS'x'\nI1\nsb.", "state for a list"),
        "state for a dtype with fields": (
            b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nN(S'a'\nt(dI8\nI1\nI0\ntb.",
            "structured",
        ),
        "a dtype of structures": (asks_for("numpy", "dtype", "O,i4"), "numpy.dtype"),
        "a dtype that is a call": (asks_for("numpy", "dtype", "V100000000"), "numpy.dtype"),
        "bytes as an array of objects": (
            pickle.dumps(array, 2).replace(b"f8", b"O8"),
            "object array of odd length",
        ),
        "an object scalar": (
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'12345678'\ntR.",
            "odd numpy array",
        ),
        "an array longer than its bytes": (NUMPY_ARRAY.replace(b"K\x04\x85", b"K\x05\x85"), "odd length"),
        "an array of negative length": (NUMPY_ARRAY.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"), "odd state"),
        "an array's state set twice": (NUMPY_ARRAY[:-1] + b"(K\x01tb.", "state for a ndarray"),
        "a huge empty array": (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999L\ntS'b'\ntR.",
            "odd numpy array",
        ),
        "bytes of a number": (b"c__builtin__\nbytearray\n(L99999999999L\ntR.", "no bytes"),
        "a huge bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "memory"),
        "a set of a dictionary": (b"c__builtin__\nset\n((dtR.", "set of no list"),
        "a bomb of nested tuples as a key": (b"\x80\x02}" + NESTED + b"K\x01u.", "tuple as a key"),
        "the same in a set": (b"\x80\x04\x8f(" + NESTED + b"\x90.", "tuple as a key"),
        "the same in a frozen set": (b"\x80\x04(" + NESTED + b"\x91.", "tuple as a key"),
        "a bomb of copies": (
            b"\x80\x02(]("
            + b"K\x01" * 1000
            + b"eq\x00"
            + b"c__builtin__\nset\nq\x01"
            + b"h\x01h\x00\x85R" * 1000
            + b"l.",
            "memory",
        ),
    }


DAMAGED = {
    "an unknown memo": b"\x80\x02h\x07.",
    "truncated": pickle.dumps({"a": np.arange(20.0)}, 4)[:-20],
    "truncated in a frame": pickle.dumps({"a": "x" * 100}, 4)[:40],
    "a string longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.",
    "an empty stack": b"\x80\x04.",
    "a mark that is not there": b"\x80\x04t.",
    "an unknown protocol": b"\x80\xff].",
    "an odd number of items": b"\x80\x04}(K\x01u.",
    "a number of a million digits": b"\x80\x04I" + b"9" * 10**6 + b"\n.",
    "not text": b"\x80\x04\x8c\x02\xff\xff.",
}


@pytest.mark.parametrize("name", hostile("trace"))
def test_hostile_pickles_have_no_effect_and_are_refused_by_name(name, tmp_path):
    trace = tmp_path / "trace"
    raw, named = hostile(trace)[name]
    with pytest.raises(InputError) as caught:
        safe_pickle.loads(raw, "x.pkl")
    message = str(caught.value)
    assert message.startswith("x.pkl: refused: ") and "\n" not in message and named in message
    assert not trace.exists()


def test_there_are_enough_of_them():
    assert len(hostile("trace")) >= 25


def test_numbers_that_only_promise_memory_take_none():
    assert safe_pickle.loads(b"\x80\x02]r\xff\xff\xff\xff.", "x.pkl") == []  # C's memo would be 34 GB
    assert safe_pickle.loads(b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"].", "x.pkl") == []


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pickles_are_one_line(name):
    with pytest.raises(InputError, match="not a pickle, or a damaged one") as caught:
        safe_pickle.loads(DAMAGED[name], "x.pkl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_what_feature_files_hold_is_read_as_python_reads_it(protocol):
    content = [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 3)),
        np.array(3),
        np.array(["a", "bc"]),
        np.array([b"a", b"bc"]),
        np.array([["x"], [None]], dtype=object),
        np.array([True, False]),
        np.float64(3),
        np.int8(-3),
        np.bool_(True),
        np.str_("Joey"),
        {1, 2},
        frozenset("ab"),
        b"x",
        b"",
        bytearray(b"xy"),
        "Olé \u4f60",
        2**70,
        -1,
        1.5,
        1 + 2j,
        None,
        True,
        (1, [2, {"a": (3,)}]),
    ]
    raw = pickle.dumps(content, protocol)
    for a, b in zip(pickle.loads(raw), safe_pickle.loads(raw, "x.pkl"), strict=True):
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype and a.flags.f_contiguous == b.flags.f_contiguous
        else:
            assert a == b


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [np.zeros(10_000), np.full(10_000, -np.pi), np.arange(20_000, dtype=np.uint8)])
def test_large_arrays_are_within_the_budget(protocol, value):
    content = {k: value + k for k in range(5)}
    read = safe_pickle.loads(pickle.dumps(content, protocol), "x.pkl")
    assert all(np.array_equal(read[k], content[k]) for k in content)


def test_an_object_twice_in_a_file_is_one_object():
    row = np.arange(3.0)
    content = [row, row, {"a": row}]
    for protocol in (0, 2, 5):
        a, b, c = safe_pickle.loads(pickle.dumps(content, protocol), "x.pkl")
        assert a is b and b is c["a"]


def test_samples_are_inert():
    raw = b"(icogmen.Sample\nSample\n(dS'vid'\nS'a'\nsS'__class__'\nI1\nsb."
    sample = safe_pickle.loads(raw, "x.pkl")
    assert type(sample) is safe_pickle.Sample and sample.fields == {"vid": "a", "__class__": 1}


@pytest.mark.parametrize("flip", range(0, 400, 3))
def test_a_flipped_bit_raises_nothing_else(flip):
    try:
        safe_pickle.loads(bits([flip]), "x.pkl")
    except InputError as error:
        assert "\n" not in str(error)
