"""The stack machine of the pickle reader, which moves values and calls nothing. Uses the standard library only.

It supports dicts, lists, tuples, numbers, text, and numpy arrays, which it describes by shape, dtype and place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# An official batch has 128,123 labels and little else; half a million opcodes take about a second to refuse.
_MAX_OPCODES = 500_000
_MARK = object()
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric", "numpy")
_CODEC = ("_codecs", "encode")
GLOBALS = frozenset([*((m, n) for m in _NUMPY for n in ("_reconstruct", "ndarray", "dtype", "_frombuffer")), _CODEC])
_DTYPES = {"u1": 1, "i8": 8, "f8": 8, "i4": 4, "f4": 4, "b1": 1, "i2": 2, "u2": 2, "u4": 4, "u8": 8}


class Span(bytes):
    """A byte string that stays in the file, at ``offset`` and of ``length`` bytes.

    If ``latin1`` is not None, the span is UTF-8 text of that many characters U+0000 .. U+00FF, each standing for one
    byte, which is how Python 3 writes bytes in protocols 1 and 2.
    """

    offset: int
    length: int
    latin1: int | None = None

    def __len__(self) -> int:
        return self.length

    def decode(self, encoding: str = "", errors: str = "") -> Any:
        """Returns the span itself, since genops would decode Python 2 strings, whose bytes are needed."""
        return self


@dataclass
class Array:
    """The description of a numpy array: ``data`` has its bytes if there are few, or their Span in the file."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    fortran: bool = False
    data: bytes | Span = b""

    def place(self) -> dict:
        """The array's description for JSON; ValueError unless dtype and shape account for every byte."""
        data = self.data
        got = len(data) if not isinstance(data, Span) or data.latin1 is None else data.latin1
        if self.fortran:
            raise ValueError("array is in Fortran order; expected C order")
        if self.dtype not in _DTYPES:
            raise ValueError(f"array of type {self.dtype[:20]!r}; allowed {', '.join(_DTYPES)}")
        if math.prod(self.shape) * _DTYPES[self.dtype] != got:
            raise ValueError(f"array {self.dtype!r} {self.shape} does not fit its {got} bytes")
        out: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype}
        if isinstance(data, Span):
            return {**out, "offset": data.offset, "bytes": data.length, "text": data.latin1 is not None}
        return {**out, "hex": data.hex()}


@dataclass
class _Dtype:
    code: str


@dataclass
class _Global:
    name: tuple[str, str]


class Machine:
    """The stack machine: ``step`` interprets one opcode, which only moves values."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def result(self) -> Any:
        if len(self._stack) != 1:
            raise ValueError(f"{len(self._stack)} objects are left, expected 1")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:
        self._steps += 1
        if self._steps > _MAX_OPCODES:
            raise ValueError(f"more than {_MAX_OPCODES} opcodes")
        if name in _PUSH:
            self._stack.append(argument)
        elif name in _CONSTANT:
            self._stack.append(_CONSTANT[name]())
        elif name in ("PROTO", "FRAME", "STOP"):
            return
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._global(argument)
        else:
            self._build(name)

    def _global(self, argument: str | None) -> None:
        if argument is None:
            attribute, module = self._stack.pop(), self._stack.pop()
        else:
            module, _, attribute = argument.partition(" ")
        if (module, attribute) not in GLOBALS:
            raise ValueError(f"global {str(module)[:60]}.{str(attribute)[:60]} is not allowed")
        self._stack.append(_Global((module, attribute)))

    def _build(self, name: str) -> None:
        stack = self._stack
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(stack.pop() for _ in range(int(name[-1])))[::-1])
        elif name in ("TUPLE", "LIST"):
            stack.append((tuple if name == "TUPLE" else list)(self._to_mark()))
        elif name == "DICT":
            stack.append(_pairs({}, self._to_mark()))
        elif name == "APPEND":
            value = stack.pop()
            _checked(stack[-1], list).append(value)
        elif name == "APPENDS":
            values = self._to_mark()
            _checked(stack[-1], list).extend(values)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _pairs(_checked(stack[-1], dict), [key, value])
        elif name == "SETITEMS":
            values = self._to_mark()
            _pairs(_checked(stack[-1], dict), values)
        elif name == "REDUCE":
            arguments, callee = stack.pop(), stack.pop()
            stack.append(_reduce(_checked(callee, _Global), _checked(arguments, tuple)))
        elif name == "BUILD":
            state = stack.pop()
            _set_state(stack[-1], _checked(state, tuple))
        else:
            raise ValueError(f"opcode {name} is not allowed")

    def _to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]


_PUSH = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING"),
    )
)
_CONSTANT = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} where {kind.__name__.strip('_').lower()} is expected")
    return value


def _pairs(into: dict, values: list[Any]) -> dict:
    for key, value in zip(values[::2], values[1::2], strict=True):
        # Keys of Python 2 that Python 3 pickled again are bytes.
        into[key.decode("latin-1") if type(key) is bytes else _checked(key, str)] = value
    return into


def _reduce(callee: _Global, arguments: tuple) -> Any:
    name = callee.name[1]
    if callee.name == _CODEC:
        text, codec = arguments
        if codec not in ("latin1", "latin-1"):
            raise ValueError(f"text is encoded as {str(codec)[:40]!r}; allowed latin1")
        return text if isinstance(text, Span) and text.latin1 is not None else _checked(text, str).encode("latin-1")
    if name == "_reconstruct":
        return Array()
    if name == "dtype":
        return _Dtype(_checked(arguments[0], str))
    if name == "_frombuffer":
        data, dtype, shape, order = arguments
        return Array(_shape(shape), _checked(dtype, _Dtype).code, order == "F", _bytes(data))
    raise ValueError(f"{name} is not called in such files")


def _set_state(target: Any, state: tuple) -> None:
    if isinstance(target, _Dtype):
        if state[1] not in ("|", "<"):
            raise ValueError(f"byte order {state[1]!r}; allowed little-endian")
        return
    array = _checked(target, Array)
    _, shape, dtype, fortran, data = state
    array.shape, array.dtype = _shape(shape), _checked(dtype, _Dtype).code
    array.fortran, array.data = bool(fortran) and len(shape) > 1, _bytes(data)


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = _checked(shape, tuple)
    if len(sizes) > 4 or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"shape {str(sizes)[:60]} is not one")
    return sizes


def _bytes(data: Any) -> bytes | Span:
    if isinstance(data, str):
        return data.encode("latin-1")
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"array bytes are {type(data).__name__}")
    return bytes(data) if isinstance(data, bytearray) else data
