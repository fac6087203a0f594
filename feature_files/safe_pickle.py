"""Unpickling that cannot run code.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the program names. This one
knows a short list of names and never imports, looks up or calls anything the file asks for: a global is only a `_Name`
on the stack, and the few constructions that feature files need (sets, byte strings, NumPy arrays, scalars and dtypes,
and the sample objects of some repositories) are carried out by the functions of this file, which check what they are
given. Everything else is refused with its name.

Nor can a small file unfold into a large one: keys are plain strings and numbers (hashing a nested tuple can take
forever), and what is copied is charged against the size of the file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from files import InputError


class RefusedError(Exception):
    """The pickle asks for something that no feature file needs."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A global of the pickle: how `_SafeUnpickler` is to treat it, and no more than that."""

    kind: str


@dataclass(slots=True)
class _DType:
    """A dtype in the making: pickles give the type code first and the byte order later."""

    code: str
    order: str = "="

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass(slots=True)
class Sample:
    """Inert stand-in for an instance of a class called ``Sample``, as COGMEN and CORECT pickle them."""

    fields: dict[str, Any] = field(default_factory=dict)


COPIES = 4  # of the file, that reading it may make: protocol 2 decodes an array's bytes, then fills the array
_BUILTINS = ("set", "frozenset", "object", "bytes", "bytearray", "complex")
ADMITTED = {
    **{f"{module}.{name}": name for module in ("builtins", "__builtin__") for name in _BUILTINS},
    **{f"{module}._reconstructor": "new" for module in ("copyreg", "copy_reg")},
    **{f"numpy.{core}.multiarray.{name}": name for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{f"numpy.{core}.numeric._frombuffer": "_frombuffer" for core in ("core", "_core")},
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
}
# Booleans, integers, floats, byte strings, strings and objects; no structures, no dates, nothing of width 0.
_DTYPE_CODE = re.compile(r"(b1|[iu][1248]|f(2|4|8|16)|[SU][1-9]\d{0,5}|O8?)")
# What Python's own machine does harmlessly: numbers, strings, lists, tuples, the stack and the memo.
_PLAIN_OPCODES = (
    "MARK STOP POP POP_MARK DUP FLOAT INT BININT BININT1 LONG BININT2 NONE STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE APPEND EMPTY_DICT APPENDS GET BINGET LONG_BINGET LIST EMPTY_LIST PUT BINPUT LONG_BINPUT TUPLE "
    "EMPTY_TUPLE BINFLOAT PROTO TUPLE1 TUPLE2 TUPLE3 NEWTRUE NEWFALSE LONG1 LONG4 BINBYTES SHORT_BINBYTES "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES8 EMPTY_SET MEMOIZE FRAME GLOBAL STACK_GLOBAL"
)


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise RefusedError(what)


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)


class _SafeUnpickler(pickle._Unpickler):
    """Python's own unpickler in Python (not its C twin) with a table of opcodes that has no way out.

    The C one cannot be taught to refuse an opcode, and one memo index makes it allocate 34 GB.
    """

    dispatch: ClassVar = {
        getattr(pickle, op)[0]: pickle._Unpickler.dispatch[getattr(pickle, op)[0]] for op in _PLAIN_OPCODES.split()
    }

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._size = len(data)
        self._budget = COPIES * len(data)

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            opcode = error.args[0]
            known = pickletools.code2op.get(chr(opcode)) if isinstance(opcode, int) and opcode < 256 else None
            _check(known is None or opcode in self.dispatch, f"the operation {known and known.name}")
            raise

    def find_class(self, module: str, name: str) -> _Name:
        full = f"{module}.{name}"
        kind = "Sample" if name == "Sample" else ADMITTED.get(full)
        _check(kind is not None, full)
        return _Name(kind)

    def _charge(self, amount: int) -> None:
        # A byte of the file is copied a few times at most, unless the file repeats itself to grow.
        self._budget -= amount
        _check(self._budget >= 0, "more memory than its size warrants")

    def _keys(self, keys: list) -> list:
        for key in keys:
            plain = isinstance(key, str | bytes | np.integer) or (isinstance(key, int) and abs(key) < 2**60)
            _check(plain, f"a {type(key).__name__} as a key")
        return keys

    # What stands for calling a global, by its kind.

    def _make_set(self, items: Any = ()) -> set:
        _check(isinstance(items, list | tuple | set | frozenset), "a set of no list")
        self._charge(len(items))
        return set(self._keys(list(items)))

    def _make_frozenset(self, items: Any = ()) -> frozenset:
        return frozenset(self._make_set(items))

    def _make_bytes(self) -> bytes:
        return b""

    def _make_bytearray(self, data: Any = b"", encoding: str = "latin-1") -> bytearray:
        return bytearray(self._bytes(data) if encoding in ("latin-1", "latin1") else b"")

    def _make_complex(self, real: float, imag: float) -> complex:
        return complex(real, imag)

    def _make_encode(self, text: str, encoding: str) -> bytes:
        _check(isinstance(text, str) and encoding in ("latin1", "latin-1"), "_codecs.encode to other than latin1")
        self._charge(len(text))
        return text.encode("latin1")

    def _make_dtype(self, code: Any, *_: Any) -> _DType:
        _check(isinstance(code, str) and _DTYPE_CODE.fullmatch(code) is not None, f"numpy.dtype({code!r:.40})")
        return _DType(code)

    def _make_scalar(self, dtype: Any, data: Any) -> np.generic:
        return self._array(dtype, (1,), data)[0]

    def _make__frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        _check(order in ("C", "F"), "an array in no order")
        return self._array(dtype, shape, data, order)

    def _make__reconstruct(self, cls: Any, shape: Any, code: Any) -> np.ndarray:
        _check(cls == _Name("ndarray") and shape == (0,) and code in ("b", b"b"), "an odd numpy array")
        return np.empty(0, np.int8)  # `load_build` fills it in place: the memo already holds it

    def _make_new(self, cls: Any, base: Any, state: Any) -> Sample:
        _check(base == _Name("object") and state is None, "an object of an odd base")
        return self._make_sample(cls)

    def _make_sample(self, cls: Any, *args: Any) -> Sample:
        _check(cls == _Name("Sample") and not args, "an object of an odd class")
        return Sample()

    def _bytes(self, data: Any) -> bytes | bytearray:
        if isinstance(data, str):  # a Python 2 string
            data = data.encode("latin1")
        _check(isinstance(data, bytes | bytearray), "an array of no bytes")
        self._charge(len(data))
        return data

    def _array(self, dtype: Any, shape: Any, data: Any, order: str = "C") -> np.ndarray:
        _check(isinstance(dtype, _DType) and dtype.dtype.kind != "O" and _is_shape(shape), "an odd numpy array")
        return np.frombuffer(self._bytes(data), dtype.dtype).reshape(shape, order=order)

    # Opcodes that need care.

    def load_reduce(self) -> None:
        args = self.stack.pop()
        name = self.stack[-1]
        _check(isinstance(name, _Name) and isinstance(args, tuple), "a call of no function")
        make = getattr(self, f"_make_{name.kind}", None)
        _check(make is not None, f"a call of {name.kind}")
        self.stack[-1] = make(*args)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._make_sample(self.stack[-1], *args)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_inst(self) -> None:  # an instance of a Python 2 class, protocol 0
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        sample = self._make_sample(self.find_class(module, name), *self.pop_mark())
        self.append(sample)

    dispatch[pickle.INST[0]] = load_inst

    def load_obj(self) -> None:  # the same, protocol 1 and 2
        cls, *args = self.pop_mark()
        self.append(self._make_sample(cls, *args))

    dispatch[pickle.OBJ[0]] = load_obj

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Sample) and isinstance(state, dict):
            target.fields.update(state)
            self._charge(len(state))
        elif isinstance(target, _DType) and isinstance(state, tuple) and len(state) >= 5:
            _check(state[1] in ("<", ">", "|", "="), "a dtype of odd byte order")
            _check(state[2:5] == (None, None, None), "a structured dtype")
            target.order = state[1]
        elif isinstance(target, np.ndarray) and target.shape == (0,) and target.dtype == np.int8:
            self._fill(target, state)
        else:
            raise RefusedError(f"state for a {target.kind if isinstance(target, _Name) else type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def _fill(self, target: np.ndarray, state: Any) -> None:
        _check(isinstance(state, tuple) and len(state) == 5, "an array of odd state")
        _, shape, dtype, fortran, data = state
        _check(isinstance(dtype, _DType) and _is_shape(shape), "an array of odd state")
        if dtype.dtype.kind == "O":
            _check(isinstance(data, list) and len(data) == math.prod(shape), "an object array of odd length")
            self._charge(len(data))
        else:
            data = bytes(self._bytes(data))
            _check(len(data) == math.prod(shape) * dtype.dtype.itemsize, "an array of odd length")
        # NumPy's own, but only ever with a state that has been checked.
        target.__setstate__((1, shape, dtype.dtype, fortran is True or fortran == 1, data))

    # `append` changes with every mark, so it is looked up only after `pop_mark`.

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        _check(isinstance(self.stack[-1], dict), "items of no dictionary")
        self.stack[-1][self._keys([key])[0]] = value

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _check(isinstance(self.stack[-1], dict), "items of no dictionary")
        self.stack[-1].update(zip(self._keys(items[::2]), items[1::2], strict=True))

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(zip(self._keys(items[::2]), items[1::2], strict=True)))

    dispatch[pickle.DICT[0]] = load_dict

    def load_additems(self) -> None:
        items = self._keys(self.pop_mark())
        _check(type(self.stack[-1]) is set, "members of no set")
        self.stack[-1].update(items)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        members = self._keys(self.pop_mark())
        self.append(frozenset(members))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        _check(size <= self._size, "more memory than its size warrants")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def loads(data: bytes, source: str | Path) -> Any:
    """What a pickle holds: containers, numbers, strings, NumPy arrays and scalars, and `Sample` stand-ins.

    Python 2 strings are read as Latin-1, which loses nothing.

    Args:
        data: The pickle.
        source: The file's name, for messages.

    Raises:
        InputError: If the pickle would run code or asks for anything not admitted, or is no whole pickle.
    """
    try:
        return _SafeUnpickler(data).load()
    except RefusedError as error:
        refusal, reason = ascii(str(error))[1:-1], ""
    except EOFError:
        refusal, reason = "", "it breaks off"
    except Exception as error:  # random bytes raise nearly every type; only ours may leave
        refusal, reason = "", ascii(f"{type(error).__name__}: {error}")[1:-1]
    if not data.startswith(b"\x80") and not data.rstrip().endswith(b"."):  # by the first protocols or any later one
        raise InputError(f"{source}: not a pickle; name a feature file, or get this one again")
    if refusal:
        raise InputError(
            f"{source}: refused: this pickle asks for {refusal:.100}, and a feature file holds only containers, "
            "numbers, strings and NumPy arrays; get the file from its publisher, do not open it elsewhere"
        )
    raise InputError(f"{source}: not a pickle, or a damaged one ({reason:.100}); get the file again")
