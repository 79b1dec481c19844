"""TVM's runtime library through the C interface of its foreign-function layer, by ctypes alone.

A program that runs an artifact needs a dozen functions of two shared libraries. The Python package `tvm_ffi`
brings the layer's whole object system along and takes longer to import than most models take to load; what is
here speaks to the same libraries, by the stable interface of `tvm/ffi/c_api.h`. Both can live in one process,
in whatever order they come.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

from ..ir.errors import GraphwrightError

CPU, CUDA = 1, 2
"""Kinds of devices, as DLPack numbers them."""

_NONE, _INT, _BOOL, _POINTER, _DTYPE, _DEVICE, _TEXT, _SMALL_TEXT = 0, 1, 2, 4, 5, 6, 8, 11
_FIRST_OBJECT, _LONG_TEXT, _TENSOR, _ARRAY = 64, 65, 70, 71
_BOOL_CODE = 6
_NAMES = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
"""Element types by DLPack's codes."""
_HEADER = 24
"""Bytes of an object before what its kind adds."""


class _Value(ctypes.Structure):
    """`TVMFFIAny`: a number, a short text, or a pointer to a counted object."""

    _fields_ = (("kind", c_int32), ("length", c_uint32), ("content", c_int64))


class _Bytes(ctypes.Structure):
    """`TVMFFIByteArray`."""

    _fields_ = (("data", c_void_p), ("size", c_size_t))


class _Array(ctypes.Structure):
    """`TVMFFISeqCell`, behind the header of an array."""

    _fields_ = (("data", POINTER(_Value)), ("size", c_int64))


class _DLTensor(ctypes.Structure):
    """DLPack's description of a tensor, behind the header of one."""

    _fields_ = (
        ("data", c_void_p),
        ("device", c_int32),
        ("device_number", c_int32),
        ("rank", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("offset", c_uint64),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, c_void_p, POINTER(_Value), c_int32, POINTER(_Value))


class NativeError(GraphwrightError):
    """A call of TVM's runtime failed; the line is its own."""


class Handle:
    """One count of an object on the other side."""

    __slots__ = ("__weakref__", "_library", "kind", "pointer")

    def __init__(self, library: ctypes.CDLL, kind: int, pointer: int):
        self._library = library
        self.kind = kind
        self.pointer = pointer

    def __del__(self) -> None:
        self._library.TVMFFIObjectDecRef(self.pointer)


class Tensor(Handle):
    """A tensor of the runtime's, contiguous; its memory lives as long as this object."""

    __slots__ = ("_facts", "_memory")

    def __init__(self, library: ctypes.CDLL, kind: int, pointer: int, memory: Any = None):
        super().__init__(library, kind, pointer)
        self._memory = memory
        self._facts: tuple[int, tuple[int, ...], tuple[int, int]] | None = None

    @property
    def _description(self) -> tuple[int, tuple[int, ...], tuple[int, int]]:
        """Address, sizes and element type, which never change; read when they are first asked for."""
        if self._facts is None:
            found = _DLTensor.from_address(self.pointer + _HEADER)
            rank = found.rank
            shape = tuple((c_int64 * rank).from_address(found.shape)) if rank else ()
            self._facts = (found.data or 0) + found.offset, shape, (found.code, found.bits)
        return self._facts

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self._description[1]

    @property
    def element(self) -> tuple[int, int]:
        """DLPack's code of the element type, and its bits."""
        return self._description[2]

    @property
    def dtype(self) -> str:
        """The element type by its usual name, such as "float32"."""
        return name_of(self.element)

    @property
    def bytes(self) -> int:
        """How much memory the elements take."""
        _, shape, (_, bits) = self._description
        return (bits + 7) // 8 * math.prod(shape)

    @property
    def address(self) -> int:
        """Where the first element lies on the tensor's device."""
        return self._description[0]


class Native:
    """The functions of the loaded libraries.

    Args:
        library: `libtvm_ffi`; functions of libraries that are loaded later are found by name as well.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library = library
        library.TVMFFIObjectDecRef.argtypes = (c_void_p,)
        library.TVMFFIObjectIncRef.argtypes = (c_void_p,)
        library.TVMFFIFunctionCall.argtypes = (c_void_p, POINTER(_Value), c_int32, POINTER(_Value))
        self._functions: dict[str, Handle] = {}
        self._owner: Tensor | None = None

    def version(self) -> tuple[int, int, int]:
        """Of the C interface."""
        numbers = (c_uint32 * 3)()
        self._library.TVMFFIGetVersion(numbers)
        return tuple(numbers)  # type: ignore[return-value]

    def function(self, name: str) -> Handle:
        """A function by its global name.

        Raises:
            NativeError: there is none.
        """
        found = self._functions.get(name)
        if found is None:
            text, pointer = name.encode(), c_void_p()
            described = _Bytes(_address_of(text), len(text))
            self._check(self._library.TVMFFIFunctionGetGlobal(byref(described), byref(pointer)))
            if not pointer.value:
                raise NativeError(f"TVM's runtime has no function {name!r}")
            found = self._functions[name] = Handle(self._library, 0, pointer.value)
        return found

    def method(self, module: Handle, name: str) -> Handle:
        """A function of a module.

        Raises:
            NativeError: it has none of that name.
        """
        found = self.call("ffi.ModuleGetFunction", module, name, True)
        if found is None:
            raise NativeError(f"the library has no function {name!r}")
        return found

    def call(self, function: Handle | str, *arguments: Any) -> Any:
        """What a function returns: None, a number, a text, or an object as `Handle` or `Tensor`.

        Args:
            function: the function, or its global name.
            arguments: None, numbers, texts, values made by `device` and `dtype`, objects.

        Raises:
            NativeError: it fails.
        """
        called = self.function(function) if isinstance(function, str) else function
        count = len(arguments)
        given = (_Value * count)()
        alive = [_fill(value, argument) for value, argument in zip(given, arguments, strict=True)]
        result = _Value()
        self._check(self._library.TVMFFIFunctionCall(called.pointer, given, count, byref(result)))
        del alive
        return self._taken(result)

    def array(self, objects: Sequence[Handle]) -> Handle:
        """The runtime's array of objects."""
        return self.call("ffi.Array", *objects)

    def elements(self, array: Handle) -> list[Any]:
        """The elements of an array, each with a count of its own."""
        found = _Array.from_address(array.pointer + _HEADER)
        return [self._borrowed(found.data[index]) for index in range(found.size)]

    def view(self, address: int, shape: Sequence[int], element: tuple[int, int], memory: Any) -> Tensor:
        """A tensor of the CPU that lies where something else does; it keeps `memory` alive."""
        if self._owner is None:  # a view is one of something, whose memory it need not use
            self._owner = self.allocate((1,), (0, 8), CPU)
        rank = len(shape)
        sizes, strides = (c_int64 * rank)(*shape), (c_int64 * rank)()
        step = 1
        for axis in range(rank - 1, -1, -1):
            strides[axis] = step
            step *= sizes[axis]
        made = _DLTensor(
            address, CPU, 0, rank, *element, 1, ctypes.addressof(sizes), ctypes.addressof(strides), 0
        )
        pointer = c_void_p()
        owner = c_void_p(self._owner.pointer)
        self._check(self._library.TVMFFITensorCreateUnsafeView(owner, byref(made), byref(pointer)))
        assert pointer.value is not None
        return Tensor(self._library, _TENSOR, pointer.value, memory)

    def allocate(self, shape: Sequence[int], element: tuple[int, int], device: int) -> Tensor:
        """A tensor in the runtime's memory, not filled."""
        sizes = self.call("ffi.Shape", *shape)
        made = _Value(_DTYPE, 0, element[0] | element[1] << 8 | 1 << 16)
        return self.call("runtime.TVMTensorAllocWithScope", sizes, made, _Value(_DEVICE, 0, device), None)

    def fill(self, tensor: Tensor, address: int, size: int) -> None:
        """Copy `size` bytes of the CPU's memory into a tensor."""
        self.call("runtime.TVMTensorCopyFromBytes", tensor, _Value(_POINTER, 0, address), size)

    def fetch(self, tensor: Tensor, address: int, size: int) -> None:
        """Copy a tensor of `size` bytes to the CPU's memory."""
        self.call("runtime.TVMTensorCopyToBytes", tensor, _Value(_POINTER, 0, address), size)

    def synchronize(self, device: int) -> None:
        """Wait until a device has done what it was asked to."""
        self.call("runtime.Device_StreamSync", _Value(_DEVICE, 0, device), 0)

    def callback(self, function: Callable[[Callable[[int, int], list[Any]]], int]) -> Handle:
        """A function for the other side to call.

        Args:
            function: gets a function by which to ask for its arguments from one index to before another (-1:
                the last), as long as it runs, and returns an integer.
        """

        def called(_self: Any, arguments: Any, count: int, result: Any) -> int:
            def ask(start: int, stop: int) -> list[Any]:
                return [self._borrowed(arguments[at]) for at in range(start, count if stop < 0 else stop)]

            try:
                answer = function(ask)
            except BaseException as error:
                text = f"{type(error).__name__}: {error}".encode(errors="replace")
                self._library.TVMFFIErrorSetRaisedFromCStr(b"RuntimeError", text)
                return -1
            result[0] = _Value(_INT, 0, answer)
            return 0

        kept, pointer = _Callback(called), c_void_p()
        self._check(self._library.TVMFFIFunctionCreate(None, kept, None, byref(pointer)))
        assert pointer.value is not None
        return _Function(self._library, pointer.value, kept)

    def _borrowed(self, value: _Value) -> Any:
        if value.kind >= _FIRST_OBJECT:
            self._library.TVMFFIObjectIncRef(value.content)
        return self._taken(value)

    def _taken(self, value: _Value) -> Any:
        kind, content = value.kind, value.content
        if kind == _TENSOR:
            return Tensor(self._library, kind, content)
        if kind == _LONG_TEXT:
            handle = Handle(self._library, kind, content)
            return _text_at(handle.pointer + _HEADER)
        if kind >= _FIRST_OBJECT:
            return Handle(self._library, kind, content)
        if kind == _NONE:
            return None
        if kind in (_INT, _BOOL):
            return content if kind == _INT else bool(content)
        if kind == _SMALL_TEXT:
            return content.to_bytes(8, "little", signed=True)[: value.length].decode(errors="replace")
        if kind == _TEXT:
            return ctypes.string_at(content).decode(errors="replace")
        return value

    def _check(self, code: int) -> None:
        if not code:
            return
        pointer = c_void_p()
        self._library.TVMFFIErrorMoveFromRaised(byref(pointer))
        if not pointer.value:
            raise NativeError("TVM's runtime failed without a word")
        error = Handle(self._library, 0, pointer.value)
        said = _text_at(error.pointer + _HEADER + ctypes.sizeof(_Bytes))
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        raise NativeError(lines[-1] if lines else "TVM's runtime failed without a word")


class _Function(Handle):
    """A function of ours, kept alive with what it calls."""

    __slots__ = ("_kept",)

    def __init__(self, library: ctypes.CDLL, pointer: int, kept: Any):
        super().__init__(library, 0, pointer)
        self._kept = kept


def element_of(dtype: str) -> tuple[int, int]:
    """DLPack's code and the bits of an element type by its usual name.

    Raises:
        NativeError: there is no such type.
    """
    if dtype == "bool":
        return _BOOL_CODE, 8
    name = dtype.rstrip("0123456789")
    codes = {known: code for code, known in _NAMES.items()}
    if name not in codes or name == dtype:
        raise NativeError(f"the runtime has no tensors of {dtype}")
    return codes[name], int(dtype[len(name) :])


def name_of(element: tuple[int, int]) -> str:
    """The usual name of an element type."""
    code, bits = element
    return "bool" if code == _BOOL_CODE else f"{_NAMES.get(code, f'type{code}_')}{bits}"


def is_array(value: Any) -> bool:
    """Whether what a call returned is an array of objects."""
    return isinstance(value, Handle) and value.kind == _ARRAY


def _fill(value: _Value, argument: Any) -> Any:
    """Make `value` mean `argument`; returns what must stay alive meanwhile."""
    if isinstance(argument, Handle):
        value.kind = argument.kind or _object_kind(argument.pointer)
        value.content = argument.pointer
    elif isinstance(argument, bool):
        value.kind, value.content = _BOOL, argument
    elif isinstance(argument, int):
        value.kind, value.content = _INT, argument
    elif isinstance(argument, str):
        text = argument.encode() + b"\0"
        value.kind, value.content = _TEXT, _address_of(text)
        return text
    elif isinstance(argument, _Value):
        value.kind, value.content = argument.kind, argument.content
    elif argument is not None:
        raise TypeError(f"no argument for TVM's runtime: {argument!r}")
    return argument


def _object_kind(pointer: int) -> int:
    return c_int32.from_address(pointer + 8).value


def _address_of(text: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(text), c_void_p).value or 0


def _text_at(address: int) -> str:
    found = _Bytes.from_address(address)
    return ctypes.string_at(found.data, found.size).decode(errors="replace") if found.size else ""
