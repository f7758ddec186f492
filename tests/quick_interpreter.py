"""Triton's interpreter without what it does again and again: it computes the same, in half the time.

Importing this changes it, for this process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def _patched_once_a_launch(patch_lang: Callable[[Any], Any] = interpreter._patch_lang) -> Callable[[Any], Any]:
    """It patches triton.language at each call of a function inside a kernel; until the launch ends, all stays so."""
    patched: set[Any] = set()

    def patch(function: Any) -> Any:
        if function in patched:
            return None
        patched.add(function)
        scope = patch_lang(function)
        restore = scope.restore

        def restore_all() -> None:
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    return patch


def _types_once(np_dtype: Callable[[Any], Any] = interpreter._get_np_dtype) -> Callable[[Any], Any]:
    """It makes a table of all types at each look into it."""
    of_scalar = cache(np_dtype)

    def of(type: Any) -> Any:
        scalar = type.scalar
        return np_dtype(scalar) if isinstance(scalar, tl.pointer_type) else of_scalar(scalar)

    return of


def _overflow_where_asserted(
    check: Callable[..., None] = TritonSemantic.binary_op_sanitize_overflow_impl,
) -> Callable[..., None]:
    """It computes whether integers overflow, in some ten operations, and asserts that where it debugs alone."""

    def checked(self: Any, *operands: Any) -> None:
        if self.builder.options.debug:
            check(self, *operands)

    return checked


def _shapes_once(block: Callable[..., None] = tl.block_type.__init__) -> Callable[..., None]:
    """A shape is checked and made for each value that has it."""
    known: dict[tuple[int, ...], tuple[Any, int, str]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = tuple([getattr(side, "value", side) for side in getattr(shape, "values", shape)])
        if key in known:
            self.element_ty = element_ty
            self.shape, self.numel, name = known[key]
            self.name = f"<{name}, {element_ty}>"
        else:
            block(self, element_ty, shape)
            known[key] = self.shape, self.numel, str(self.shape)

    return init


def _shapes_of_tensors_once(tensor: Callable[..., None] = tl.tensor.__init__) -> Callable[..., None]:
    """The same for tensors, by the shape that their types share."""
    known: dict[int, tuple[Any, Any, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        shape = type.shape if type.is_block() else None
        if id(shape) in known:
            _, self.numel, self.shape = known[id(shape)]
            self.handle, self.type, self.dtype = handle, type, type.scalar
        else:
            tensor(self, handle, type)
            known[id(shape)] = shape, self.numel, self.shape

    return init


interpreter._patch_lang = _patched_once_a_launch()
interpreter._get_np_dtype = _types_once()
TritonSemantic.binary_op_sanitize_overflow_impl = _overflow_where_asserted()
tl.block_type.__init__ = _shapes_once()
tl.tensor.__init__ = _shapes_of_tensors_once()
