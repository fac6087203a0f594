"""Unpickling that cannot run code.

A pickle is a program for a small stack machine, and Python's own machine calls whatever the program names. This one
knows a short list of names and never imports, looks up or calls anything the file asks for: a global is only a `_Name`
on the stack, and the few constructions that feature files need (sets, byte strings, NumPy arrays, scalars and dtypes,
and the sample objects of some repositories) are carried out by the functions of this file, which check what they are
given. Everything else is refused with its name.

Nor can a small file unfold into a large one, or keep us busy without end. Keys are plain strings and numbers (hashing
a nested tuple can take forever); what is copied, every object and every step is charged against the size of the file;
numbers, shapes and nesting have their bounds, and nothing contains itself.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import sys
from collections.abc import Callable, Iterable
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


BASE = 10_000  # objects that the smallest file may have, and a tenth of its steps
STEPS = 2  # bytes of the file that a step of the machine needs at least; small whole numbers have 2.1, real files 200
OBJECTS = 4  # the same for an object of about 64 bytes; rows of one number have 4.5, real files 500
DEEPEST = 16  # containers within containers; real files have 5
LONGEST_NUMBER = 512  # bytes of a whole number, which Python can still print
MOST_DIMENSIONS = 8  # of an array
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


class _Metered(dict):
    """A table of opcodes that charges for each look at it, since Python's machine looks once a step.

    Args:
        table: Opcode to function.
        charge: Called with the objects that the opcode makes; raises where there have been too many.
    """

    def __init__(self, table: dict[int, Any], charge: Callable[[int], None]):
        super().__init__(table)
        self._charge = charge

    def __getitem__(self, opcode: int) -> Any:
        self._charge(_OBJECTS_OF.get(opcode, 0))
        return super().__getitem__(opcode)


# What an opcode makes, in units of an empty list: a mark is a list of its own, an empty set is as large as four lists.
_OBJECTS_OF = {
    **{
        op[0]: 1
        for op in (
            *(pickle.MARK, pickle.LIST, pickle.DICT, pickle.EMPTY_LIST, pickle.EMPTY_DICT),
            *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.REDUCE, pickle.BYTEARRAY8),
            *(pickle.MEMOIZE, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
        )
    },
    **{op[0]: 4 for op in (pickle.EMPTY_SET, pickle.FROZENSET, pickle.NEWOBJ, pickle.INST, pickle.OBJ)},
}


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
        self._steps = 10 * BASE + len(data) // STEPS
        self._objects = BASE + len(data) // OBJECTS
        self.dispatch = _Metered(self.dispatch, self._step)

    def load(self) -> Any:
        try:
            return _bounded(super().load())
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

    def _step(self, objects: int) -> None:
        self._steps -= 1
        self._objects -= objects
        if self._steps < 0 or self._objects < 0:
            raise RefusedError(f"more {'steps' if self._steps < 0 else 'objects'} than its size warrants")

    def _is_shape(self, shape: Any) -> bool:
        """Whether an array may have a shape: a dimension of 0 makes all others free, so each has its bound."""
        return (
            isinstance(shape, tuple)
            and len(shape) <= MOST_DIMENSIONS
            and all(type(n) is int and 0 <= n <= self._size for n in shape)
        )

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
        _check(isinstance(dtype, _DType) and dtype.dtype.kind != "O" and self._is_shape(shape), "an odd numpy array")
        return sound(np.frombuffer(self._bytes(data), dtype.dtype).reshape(shape, order=order))

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
        _check(isinstance(dtype, _DType) and self._is_shape(shape), "an array of odd state")
        if dtype.dtype.kind == "O":
            _check(isinstance(data, list) and len(data) == math.prod(shape), "an object array of odd length")
            self._charge(len(data))
        else:
            data = bytes(self._bytes(data))
            _check(len(data) == math.prod(shape) * dtype.dtype.itemsize, "an array of odd length")
        # NumPy's own, but only ever with a state that has been checked.
        target.__setstate__((1, shape, dtype.dtype, fortran is True or fortran == 1, data))
        sound(target)

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

    def load_long1(self) -> None:
        self._long(self.read(1)[0])

    dispatch[pickle.LONG1[0]] = load_long1

    def load_long4(self) -> None:
        self._long(int.from_bytes(self.read(4), "little", signed=True))

    dispatch[pickle.LONG4[0]] = load_long4

    def _long(self, size: int) -> None:
        _check(0 <= size <= LONGEST_NUMBER, "a number of more digits than any has")
        self.append(int.from_bytes(self.read(size), "little", signed=True))


def sound(array: np.ndarray) -> np.ndarray:
    """An array, once its bytes are known to be values of its type.

    Raises:
        RefusedError: If they are not: NumPy takes any bytes for characters or truth values, and fails later.
    """
    if array.dtype.kind == "U" and array.size:
        codes = np.frombuffer(array.tobytes(), array.dtype.newbyteorder("=").byteorder + "u4")
        codes = codes if array.dtype.isnative else codes.byteswap()
        _check(codes.max() <= sys.maxunicode, "characters that there are not")
    if array.dtype.kind == "b" and array.size:
        _check(int(np.frombuffer(array.tobytes(), np.uint8).max()) <= 1, "truth values that are neither")
    return array


def _bounded(content: Any) -> Any:
    """What a pickle held, once nothing in it is too deep or contains itself.

    Both would stop any function that looks at values as a whole, such as a comparison.
    """
    heights: dict[int, int] = {}  # how many containers deep each is; 0 while what is in it is looked at
    stack: list[tuple[Any, list | None]] = [(content, None)]
    while stack:
        value, inner = stack.pop()
        if inner is not None:
            heights[id(value)] = 1 + max((heights[id(x)] for x in inner), default=0)
            _check(heights[id(value)] <= DEEPEST, f"containers more than {DEEPEST} deep")
        elif id(value) in heights:
            _check(heights[id(value)] > 0, "a container that contains itself")
        else:
            heights[id(value)] = 0
            inner = [x for x in _inside(value) if isinstance(x, _CONTAINERS)]
            stack.append((value, inner))
            stack += [(x, None) for x in inner]
    return content


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, Sample):
        return (value.fields,)
    if isinstance(value, np.ndarray):
        return value.ravel() if value.dtype.kind == "O" else ()
    return value if isinstance(value, list | tuple) else ()  # members of sets are strings and numbers


_CONTAINERS = (dict, list, tuple, np.ndarray, Sample)


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
