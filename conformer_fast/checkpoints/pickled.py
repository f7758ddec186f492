"""What a pickle holds, read as data: its opcodes are followed here, and nothing that it names is imported or called.

The standard library's unpickler and PyTorch's restricted one run what is on a list; the latter's is one for the whole
process, so that what one thread allows is allowed to all. Here is nothing to allow.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any

MOST_STEPS = 10_000_000
"""Opcodes of one pickle: each may make an object of some 60 bytes. A training checkpoint has some 100,000."""

MOST_LETTERS = 1000  # of the name of a module or class; a pickle can put long ones together again and again

VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PLAIN_KEY = str | bytes | int | float | None


class PickleError(ValueError):
    """Not a pickle, or none that can be followed."""


class Named:
    """A class or function that a pickle names; only its name is known."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name.replace("__builtin__.", "builtins.")  # as Python 2 called it


class Left:
    """Stands for an object of the program that wrote the pickle, whatever was in it.

    kind: what it was: the name of what made it
    """

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def unpickle(file: IO[bytes], make: Callable[[str, tuple[Any, ...]], Any], stored: Callable[[Any], Any]) -> Any:
    """The object whose pickle begins where the file stands; the file then stands behind it.

    make:   what stands for a call of the named class or function with these arguments
    stored: what stands for the object that was saved outside the pickle under this id

    A state that an object is to be given is left out. Raises PickleError, and whatever damaged bytes raise.
    """
    follower = _Follower(make, stored)
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "STOP":
            return follower.stack.pop()
        if step == MOST_STEPS:
            raise PickleError(f"a pickle of more than {MOST_STEPS} steps")
        follower.follow(opcode.name, argument)
    raise PickleError("a pickle without an end")


class _Follower:
    """The stack, the marks on it and the memo of one pickle."""

    def __init__(self, make: Callable[[str, tuple[Any, ...]], Any], stored: Callable[[Any], Any]) -> None:
        self._make, self._stored = make, stored
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in PUTS:
            self._memo[argument] = stack[-1]
        elif name in GETS:
            stack.append(self._memo[argument])
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        else:
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise PickleError(f"the opcode {name}")
            step(*() if argument is None else (argument,))

    def _proto(self, version: int) -> None:
        pass

    def _frame(self, length: int) -> None:
        pass

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _mark(self) -> None:
        self._marks.append(len(self.stack))

    def _pop_mark(self) -> list[Any]:
        """What lies above the last mark, taken from the stack."""
        mark = self._marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _pop(self) -> None:
        self.stack.pop()

    def _dup(self) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def _empty_list(self) -> None:
        self.stack.append([])

    def _list(self) -> None:
        self.stack.append(self._pop_mark())

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Left):
            raise PickleError("appends to what is no list")

    def _empty_dict(self) -> None:
        self.stack.append({})

    def _dict(self) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._update(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                plain = isinstance(key, PLAIN_KEY)  # a tuple of tuples of ... may be too deep to be hashed
                target[key if plain else Left(type(key).__name__)] = value
        elif not isinstance(target, Left):
            raise PickleError("sets an item of what is no dictionary")

    def _empty_set(self) -> None:
        self.stack.append(Left("set"))

    def _additems(self) -> None:
        self._pop_mark()

    def _frozenset(self) -> None:
        self._pop_mark()
        self.stack.append(Left("frozenset"))

    def _global(self, names: str) -> None:
        self.stack.append(Named(names.replace(" ", ".")))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not all(isinstance(part, str) and len(part) <= MOST_LETTERS for part in (module, name)):
            raise PickleError("names a class by what is no name")
        self.stack.append(Named(f"{module}.{name}"))

    def _reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self._call(called, arguments)

    _newobj = _reduce

    def _newobj_ex(self) -> None:
        self.stack.pop()  # arguments by name
        self._reduce()

    def _obj(self) -> None:
        called, *arguments = self._pop_mark()
        self._call(called, tuple(arguments))

    def _inst(self, names: str) -> None:
        self._call(Named(names.replace(" ", ".")), tuple(self._pop_mark()))

    def _call(self, called: Any, arguments: Any) -> None:
        if not (isinstance(called, Named) and isinstance(arguments, tuple)):
            raise PickleError("calls what has no name")
        self.stack.append(self._make(called.name, arguments))

    def _build(self) -> None:
        self.stack.pop()

    def _binpersid(self) -> None:
        self.stack.append(self._stored(self.stack.pop()))
