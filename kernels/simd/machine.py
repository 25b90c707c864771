"""Single instructions that Python has no words for: share a counter, treat denormals as zero, words of any address."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from pg2ref.kernels.simd.cpu import IS_X86
from pg2ref.kernels.simd.vectors import I8, I16, I32, I64

CACHE_LINE = 64  # bytes
FLUSH = 0x8040  # bits of MXCSR: denormal results become zero, denormal operands count as zero


@intrinsic
def take(typing, counter):  # type: ignore[no-untyped-def]
    """The counter's value, one more being left: threads share out work by it. `counter` is an int64's address."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, I64(1), "monotonic")

    return types.int64(types.int64), emit


def control_instruction(builder: Any, name: str, place: Any) -> None:
    """STMXCSR or LDMXCSR: this thread's MXCSR, the register that says how floats are rounded, to or from a place."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer()])
    instruction = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
    builder.call(instruction, [builder.bitcast(place, I8.as_pointer())])


@intrinsic
def flush_denormals(typing, on):  # type: ignore[no-untyped-def]
    """Set or clear FLUSH in this thread; what MXCSR held before, for `restore_control`. Only x86 has it.

    VDPBF16PS always flushes, so the instructions that stand in for it must, and others must not, whatever the caller
    has chosen for itself.
    """

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if not IS_X86:
            return I32(0)
        place = cgutils.alloca_once(builder, I32)
        control_instruction(builder, "stmxcsr", place)
        before = builder.load(place)
        set_, cleared = builder.or_(before, I32(FLUSH)), builder.and_(before, I32(~FLUSH & 0xFFFFFFFF))
        builder.store(builder.select(builder.icmp_signed("!=", arguments[0], I64(0)), set_, cleared), place)
        control_instruction(builder, "ldmxcsr", place)
        return before

    return types.int32(types.int64), emit


@intrinsic
def restore_control(typing, control):  # type: ignore[no-untyped-def]
    """Give this thread its MXCSR back, as `flush_denormals` found it."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if IS_X86:
            place = cgutils.alloca_once(builder, I32)
            builder.store(arguments[0], place)
            control_instruction(builder, "ldmxcsr", place)
        return _context.get_dummy_value()

    return types.void(types.int32), emit


@intrinsic
def load_word(typing, address):  # type: ignore[no-untyped-def]
    """The 32 bits at an address of any alignment."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], I32.as_pointer()))
        value.align = 1
        return value

    return types.uint32(types.int64), emit


@intrinsic
def store_word(typing, value, address):  # type: ignore[no-untyped-def]
    """Write 32 bits to an address of any alignment."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store(arguments[0], builder.inttoptr(arguments[1], I32.as_pointer())).align = 1
        return _context.get_dummy_value()

    return types.void(types.uint32, types.int64), emit


@intrinsic
def load_half(typing, address):  # type: ignore[no-untyped-def]
    """The 16 bits at an address of any alignment."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.inttoptr(arguments[0], I16.as_pointer()))
        value.align = 1
        return value

    return types.uint16(types.int64), emit


def prefetch(address: int) -> None:
    """Ask for the cache line at an address, to be read later; no fault where there is no memory. Python has no need."""


@intrinsic
def fetch_line(typing, address):  # type: ignore[no-untyped-def]
    """What `prefetch` is in compiled code."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, I32(0), I32(2), I32(1)])  # for reading, into the second cache, data
        return _context.get_dummy_value()

    return types.void(types.int64), emit


@overload(prefetch)
def _prefetch(address):  # type: ignore[no-untyped-def]
    return lambda address: fetch_line(address)
