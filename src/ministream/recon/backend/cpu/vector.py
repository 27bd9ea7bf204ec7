"""`lanes` floats as one value in a kernel: explicit loads, stores and fused multiply-adds.

A value of 64 lanes is four registers of AVX-512, eight of AVX2 or sixteen of NEON, so one kernel serves every
processor. The number of lanes is part of the type of a kernel's argument `blocking`, a `Blocking`.
An index counts elements from the array's first byte: no bounds check, no negative indices, C order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import NativeValue, intrinsic, register_model, typeof_impl, unbox

from ministream.jit import inline
from ministream.recon.backend.cpu.blocking import LINES, Blocking

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_FAST = ("nsz", "nnan", "contract")


class BlockingType(types.Type):
    """numba's type of a `Blocking`: the numbers are in the type, the value is empty."""

    def __init__(self, blocking: Blocking) -> None:
        self.numbers = {name: getattr(blocking, name) for name in (*Blocking.__slots__, "span")}
        super().__init__(name=str(blocking))


register_model(BlockingType)(models.OpaqueModel)


@typeof_impl.register(Blocking)
def _typeof_blocking(value: Blocking, context: Any) -> BlockingType:
    return BlockingType(value)


@unbox(BlockingType)
def _unbox_blocking(kind: BlockingType, value: Any, context: Any) -> NativeValue:
    return NativeValue(context.context.get_dummy_value())


class Vector(types.Type):
    """numba's type of a vector of float32 or int32, kept as `parts` vectors of LLVM."""

    def __init__(self, lanes: int, parts: int = 1, element: types.Type = types.float32) -> None:
        self.lanes = lanes
        self.parts = parts
        self.element = element
        super().__init__(name=f"{element}x{lanes}/{parts}")

    @classmethod
    def of(cls, blocking: BlockingType) -> Self:
        """The type of a kernel's sums."""
        return cls(blocking.numbers["lanes"], blocking.numbers["parts"])

    @property
    def part(self) -> ir.VectorType:
        """LLVM's type of a part."""
        return ir.VectorType(_FLOAT if self.element is types.float32 else _INT, self.lanes // self.parts)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, ir.ArrayType(fe_type.part, fe_type.parts))


def _parts(builder: Any, kind: Any, value: Any, like: Vector) -> list[Any]:
    """A vector's parts, or a scalar in every lane of parts as `like` has them."""
    if isinstance(kind, Vector):
        return [builder.extract_value(value, k) for k in range(kind.parts)]
    return [_splat(builder, value, like.lanes // like.parts)] * like.parts


def _joined(builder: Any, kind: Vector, parts: list[Any]) -> Any:
    value = ir.Constant(ir.ArrayType(kind.part, kind.parts), ir.Undefined)
    for k, part in enumerate(parts):
        value = builder.insert_value(value, part, k)
    return value


def _pointers(context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: Vector) -> list[Any]:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    first = builder.bitcast(builder.gep(data, [index]), kind.part.as_pointer())
    return [builder.gep(first, [ir.IntType(64)(k)]) for k in range(kind.parts)]


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    vector = arguments[0].type
    kind = ir.FunctionType(vector, [vector] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{vector.count}f32")
    return builder.call(function, arguments, fastmath=_FAST)


def _between(left: Any, right: Any, instruction: Callable[[Any, bool, Any, Any], Any]) -> Any:
    """Signature and code of an intrinsic on two vectors, or a vector and a scalar, which counts in every lane.

    `instruction` gets LLVM's builder, whether the elements are floats, and a part of either side.
    """
    result = left if isinstance(left, Vector) else right
    kinds = [kind if isinstance(kind, Vector) else result.element for kind in (left, right)]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sides = [_parts(builder, kind, value, result) for kind, value in zip(kinds, arguments, strict=True)]
        floats = result.element is types.float32
        return _joined(builder, result, [instruction(builder, floats, x, y) for x, y in zip(*sides, strict=True)])

    return result(*kinds), codegen


def _least(builder: Any, real: bool, left: Any, right: Any) -> Any:
    if real:
        return _call(builder, "minnum", left, right)
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def _greatest(builder: Any, real: bool, left: Any, right: Any) -> Any:
    if real:
        return _call(builder, "maxnum", left, right)
    return builder.select(builder.icmp_signed(">", left, right), left, right)


def _number(name: str) -> Any:
    """An intrinsic that returns one number of a blocking, as a constant."""

    def number(typingctx: Any, blocking: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return ir.Constant(ir.IntType(64), blocking.numbers[name])

        return types.int64(blocking), codegen

    return intrinsic(number)


lanes_of = _number("lanes")
sums_of = _number("sums")
side_of = _number("side")
group_of = _number("group")
strip_of = _number("strip")
span_of = _number("span")


@intrinsic
def zeros(typingctx: Any, blocking: Any) -> Any:
    """A vector of zeros."""
    result = Vector.of(blocking)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.ArrayType(result.part, result.parts), None)

    return result(blocking), codegen


@intrinsic
def load(typingctx: Any, blocking: Any, array: Any, index: Any) -> Any:
    """The `lanes` floats at `array.flat[index]`."""
    result = Vector.of(blocking)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = _pointers(context, builder, signature.args[1], arguments[1], arguments[2], result)
        return _joined(builder, result, [builder.load(pointer, align=4) for pointer in pointers])

    return result(blocking, array, types.int64), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write `vector` at `array.flat[index]`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = _pointers(context, builder, signature.args[0], arguments[0], arguments[1], vector)
        for part, pointer in zip(_parts(builder, vector, arguments[2], vector), pointers, strict=True):
            builder.store(part, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), codegen


@intrinsic
def fma(typingctx: Any, scalar: Any, vector: Any, accumulator: Any) -> Any:
    """scalar * vector + accumulator, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        columns = zip(
            *(_parts(builder, k, v, vector) for k, v in zip(signature.args, arguments, strict=True)), strict=True
        )
        return _joined(builder, vector, [_call(builder, "fma", *column) for column in columns])

    return vector(types.float32, vector, vector), codegen


@intrinsic
def add(typingctx: Any, left: Any, right: Any) -> Any:
    """left + right, lane by lane; either may be a scalar."""
    return _between(left, right, lambda b, real, x, y: b.fadd(x, y, flags=_FAST) if real else b.add(x, y))


@intrinsic
def minus(typingctx: Any, left: Any, right: Any) -> Any:
    """left - right, lane by lane; either may be a scalar."""
    return _between(left, right, lambda b, real, x, y: b.fsub(x, y, flags=_FAST) if real else b.sub(x, y))


@intrinsic
def times(typingctx: Any, left: Any, right: Any) -> Any:
    """left * right, lane by lane; either may be a scalar."""
    return _between(left, right, lambda b, real, x, y: b.fmul(x, y, flags=_FAST) if real else b.mul(x, y))


@intrinsic
def least(typingctx: Any, left: Any, right: Any) -> Any:
    """The smaller one, lane by lane; either may be a scalar."""
    return _between(left, right, _least)


@intrinsic
def greatest(typingctx: Any, left: Any, right: Any) -> Any:
    """The larger one, lane by lane; either may be a scalar."""
    return _between(left, right, _greatest)


@intrinsic
def ramp(typingctx: Any, start: Any, step: Any) -> Any:
    """start, start + step, … in `LINES` lanes, float32 or int32 as `start` is."""
    result = Vector(LINES, element=start)
    number = float if start is types.float32 else int

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = ir.Constant(result.part, [number(k) for k in range(LINES)])
        first, each = (_splat(builder, value, LINES) for value in arguments)
        if start is types.float32:
            return _joined(builder, result, [_call(builder, "fma", each, numbers, first)])
        return _joined(builder, result, [builder.add(first, builder.mul(each, numbers))])

    return result(start, start), codegen


@intrinsic
def truncate(typingctx: Any, vector: Any) -> Any:
    """A float32 vector's whole numbers towards zero, as int32."""
    result = Vector(vector.lanes, vector.parts, types.int32)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        parts = _parts(builder, vector, arguments[0], vector)
        return _joined(builder, result, [builder.fptosi(part, result.part) for part in parts])

    return result(vector), codegen


@intrinsic
def real(typingctx: Any, vector: Any) -> Any:
    """An int32 vector as float32."""
    result = Vector(vector.lanes, vector.parts)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        parts = _parts(builder, vector, arguments[0], vector)
        return _joined(builder, result, [builder.sitofp(part, result.part) for part in parts])

    return result(vector), codegen


@inline
def clip(vector, lower, upper):
    """`vector` limited to [lower, upper] lane by lane."""
    return least(greatest(vector, lower), upper)


@intrinsic
def item(typingctx: Any, array: Any, index: Any) -> Any:
    """The scalar `array.flat[index]`, without the cost of the wrap-around of negative indices."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of `array.flat[index]`; any index is allowed, invalid addresses are ignored."""

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
    """Add to `counter[0]` (int64) atomically and return the old value; threads use it to distribute tasks."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, arguments[1], "monotonic")

    return types.int64(counter, types.int64), codegen
