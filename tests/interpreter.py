"""Fixes for Triton's interpreter, and stricter checks. For tests only.

- numpy has no bfloat16: the interpreter stores the bits as uint16 and computes with them. The patch
  computes every operation in float32 and rounds to nearest even where a kernel casts.
- Masked lanes without `other` read 0, which no GPU guarantees. With the patch they read NaN.
- The interpreter lacks atomic additions through a tensor descriptor; the patch adds them.
- `range` bounds in Triton 3.6 need `__index__` of one-element arrays; the patch adds it.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def is_bfloat16(handle) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16


def widen(handle):
    if not is_bfloat16(handle):
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def to_bits(values) -> np.ndarray:
    """Convert float32 to the bits of bfloat16 (uint16), rounding to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


def patch_interpreter() -> None:
    cast, load = InterpreterBuilder.cast_impl, InterpreterBuilder.create_masked_load

    def cast_impl(self, source, to):
        source = widen(source)
        if to.scalar == tl.bfloat16:
            return TensorHandle(to_bits(source.data.astype(np.float32)), tl.bfloat16)
        return source if source.dtype.scalar == to.scalar else cast(self, source, to)

    def wrap(name):
        inner = getattr(InterpreterBuilder, name)

        def widened(self, *args):
            narrow = any(is_bfloat16(arg) for arg in args)
            result = inner(self, *(widen(arg) for arg in args))
            if narrow and result.dtype.scalar == tl.float32 and name != "create_dot":
                return TensorHandle(to_bits(result.data), tl.bfloat16)
            return result

        setattr(InterpreterBuilder, name, widened)

    for name in ("binary_op", "unary_op", "ternary_op", "create_dot"):
        wrap(name)
    InterpreterBuilder.cast_impl = cast_impl
    convert = InterpreterBuilder.create_fp_to_fp

    def create_fp_to_fp(self, source, to, rounding):
        if tl.bfloat16 in (source.dtype.scalar, to.scalar):
            return cast_impl(self, source, to)
        return convert(self, source, to, rounding)

    def create_masked_load(self, pointers, mask, other, *rest, **named):
        if other is None:
            element = pointers.get_element_ty()
            dtype = interpreter._get_np_dtype(element)
            poison = np.uint16(0x7FC0) if element == tl.bfloat16 else np.nan
            if element.is_floating():
                other = TensorHandle(np.full(pointers.data.shape, poison, dtype), element)
        return load(self, pointers, mask, other, *rest, **named)

    def create_descriptor_reduce(self, kind, descriptor, value, indices):
        pointers, mask = descriptor.materialize_pointers(indices)
        inner = interpreter._interpreter
        inner.atomic_rmw(
            inner.RMW_OP.FADD, pointers.data, np.ascontiguousarray(value.data), mask.data, inner.MEM_SEMANTIC.RELAXED
        )

    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    InterpreterBuilder.create_masked_load = create_masked_load
    InterpreterBuilder.create_descriptor_reduce = create_descriptor_reduce
    patch = interpreter._patch_lang_tensor

    def patched(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patched
