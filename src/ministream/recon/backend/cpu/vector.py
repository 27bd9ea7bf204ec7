"""`lanes` floats as one value in a kernel: explicit loads, stores and fused multiply-adds.

A value of 64 lanes is four registers of AVX-512, eight of AVX2 or sixteen of NEON: LLVM splits it, so one kernel
serves every processor. How many lanes is part of the type of a kernel's argument `lanes`, a `Lanes`.
An index counts elements from the array's first byte: no bounds check, no negative indices, C order.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import NativeValue, intrinsic, register_model, typeof_impl, unbox

WIDE = 128
"""Lanes of the widest vectors: they take twice the registers and the cache of others, so their blocks are smaller."""

_FLOAT = ir.FloatType()
_FAST = ("nsz", "nnan", "contract")


class Lanes:
    """A number of lanes, as an argument for which a kernel is compiled anew."""

    def __init__(self, count: int) -> None:
        self.count = count


class LanesType(types.Type):
    """numba's type of a `Lanes`: the number is in the type, the value is empty."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Lanes({count})")


register_model(LanesType)(models.OpaqueModel)


@typeof_impl.register(Lanes)
def _typeof_lanes(value: Lanes, context: Any) -> LanesType:
    return LanesType(value.count)


@unbox(LanesType)
def _unbox_lanes(kind: LanesType, value: Any, context: Any) -> NativeValue:
    return NativeValue(context.context.get_dummy_value())


class Vector(types.Type):
    """numba's type of a float32 vector."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, ir.VectorType(_FLOAT, fe_type.lanes))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, lanes: int) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(_FLOAT, lanes).as_pointer())


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(_FLOAT, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _call(builder: Any, name: str, lanes: int, arguments: list[Any]) -> Any:
    vector = ir.VectorType(_FLOAT, lanes)
    kind = ir.FunctionType(vector, [vector] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{lanes}f32")
    return builder.call(function, arguments, fastmath=_FAST)


@intrinsic
def width_of(typingctx: Any, lanes: Any) -> Any:
    """The number of lanes, a constant."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(64), lanes.count)

    return types.int64(lanes), codegen


@intrinsic
def zeros(typingctx: Any, lanes: Any) -> Any:
    """A vector of zeros."""
    result = Vector(lanes.count)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.VectorType(_FLOAT, result.lanes), [0.0] * result.lanes)

    return result(lanes), codegen


@intrinsic
def load(typingctx: Any, lanes: Any, array: Any, index: Any) -> Any:
    """The `lanes` floats at `array.flat[index]`."""
    result = Vector(lanes.count)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[1], arguments[1], arguments[2], result.lanes)
        return builder.load(pointer, align=4)

    return result(lanes, array, types.int64), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write `vector` at `array.flat[index]`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], vector.lanes)
        builder.store(arguments[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), codegen


@intrinsic
def fma(typingctx: Any, scalar: Any, vector: Any, accumulator: Any) -> Any:
    """scalar * vector + accumulator, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weight = _splat(builder, arguments[0], vector.lanes)
        return _call(builder, "fma", vector.lanes, [weight, arguments[1], arguments[2]])

    return vector(types.float32, vector, vector), codegen


@intrinsic
def add(typingctx: Any, left: Any, right: Any) -> Any:
    """left + right, lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(arguments[0], arguments[1], flags=_FAST)

    return left(left, right), codegen


@intrinsic
def times(typingctx: Any, left: Any, right: Any) -> Any:
    """left * right, lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(arguments[0], arguments[1], flags=_FAST)

    return left(left, right), codegen


@intrinsic
def clip(typingctx: Any, vector: Any, lower: Any, upper: Any) -> Any:
    """`vector` limited to [lower, upper] lane by lane."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high = (_splat(builder, bound, vector.lanes) for bound in arguments[1:])
        return _call(
            builder, "minnum", vector.lanes, [_call(builder, "maxnum", vector.lanes, [arguments[0], low]), high]
        )

    return vector(vector, types.float32, types.float32), codegen


@intrinsic
def item(typingctx: Any, array: Any, index: Any) -> Any:
    """The scalar `array.flat[index]`, without the wrap-around of negative indices that an ordinary access pays for."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of `array.flat[index]`; any index will do, an address that does not exist is ignored."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        line = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [line, flag(0), flag(2), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def fetch_add(typingctx: Any, counter: Any, amount: Any) -> Any:
    """Add to `counter[0]` (int64) atomically and return what it was: how threads deal out tasks."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, arguments[1], "monotonic")

    return types.int64(counter, types.int64), codegen
