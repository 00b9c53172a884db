"""Loops in Python that run once to be written down, and are compiled by LLVM: what `kernel` is made with.

A kernel is a function of `Value`s. Arithmetic on them, indexing and the loops below emit instructions instead of
computing; ordinary Python in between (a `for` over `range(4)`, a list) is unrolled. So a kernel reads as the loops it
is, and LLVM gets nothing else: all kernels of a precision compile in a second, in memory, without
files. LLVM rearranges no sum, so that the numbers of a column depend on neither its place nor how many there are.

    def scale(code, rows, factor, n):
        for at in code.columns(n):  # vectors of columns, then what is left one by one
            rows[at] = factor[0] * rows[at]
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

INT, POINTER = ir.IntType(64), ir.PointerType()
BYTE = ir.IntType(8)


class Value:
    """A whole number, a real number, or a vector of real numbers, in a register."""

    def __init__(self, code: Code, value: ir.Value) -> None:
        self.code, self.value = code, value

    @property
    def whole(self) -> bool:
        """Whether it is a whole number, or a vector of them."""
        return isinstance(getattr(self.value.type, "element", self.value.type), ir.IntType)

    def _binary(self, other: Value | float, whole: str, real: str) -> Value:
        a, b = self.code.alike(self, other)
        build = self.code.build
        if a.whole:
            return Value(self.code, getattr(build, whole)(a.value, b.value))
        return Value(self.code, getattr(build, real)(a.value, b.value))

    def __add__(self, other: Value | float) -> Value:
        return self._binary(other, "add", "fadd")

    def __sub__(self, other: Value | float) -> Value:
        return self._binary(other, "sub", "fsub")

    def __mul__(self, other: Value | float) -> Value:
        return self._binary(other, "mul", "fmul")

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: float) -> Value:
        return self.code.alike(other, self)[0] - self

    def __floordiv__(self, other: Value | int) -> Value:
        return self._binary(other, "sdiv", "")

    def __neg__(self) -> Value:
        return Value(self.code, self.code.build.fneg(self.value))

    def __and__(self, other: Value | int) -> Value:
        return self._binary(other, "and_", "")

    def __xor__(self, other: Value | int) -> Value:
        return self._binary(other, "xor", "")

    def __rshift__(self, other: Value | int) -> Value:
        return self._binary(other, "lshr", "")


class Pointer:
    """Numbers in memory: `p[i]`, `p[i] = v`, and `p + i`, which points i further."""

    def __init__(self, code: Code, value: ir.Value, kind: ir.Type) -> None:
        self.code, self.value, self.kind = code, value, kind

    def __add__(self, index: Value | int) -> Pointer:
        at = self.code.alike(index, self.code.number(0))[0].value
        return Pointer(self.code, self.code.build.gep(self.value, [at], source_etype=self.kind), self.kind)

    def __getitem__(self, index: Value | Lane | int) -> Value:
        place, width = (self + index.at, index.width) if isinstance(index, Lane) else (self + index, 1)
        kind = ir.VectorType(self.kind, width) if width > 1 else self.kind
        loaded = self.code.build.load(place.value, typ=kind, align=self._align)
        if kind == BYTE:  # a single one
            loaded = self.code.build.zext(loaded, INT)
        return Value(self.code, loaded)

    def __setitem__(self, index: Value | Lane | int, value: Value) -> None:
        place = self + (index.at if isinstance(index, Lane) else index)
        stored = value.value
        if self.kind == BYTE and stored.type == INT:
            stored = self.code.build.trunc(stored, BYTE)
        self.code.build.store(stored, place.value, align=self._align)

    @property
    def _align(self) -> int:
        return {"float": 4, "double": 8, "i64": 8, "i8": 1}[str(self.kind)]


class Lane:
    """Some neighbouring columns, `width` of them from `at` on."""

    def __init__(self, at: Value, width: int) -> None:
        self.at, self.width = at, width


class Variable:
    """A number that loops change: `get`, `set`."""

    def __init__(self, code: Code, start: Value) -> None:
        self.code, self.kind = code, start.value.type
        with code.build.goto_entry_block():
            self.place = code.build.alloca(self.kind)
        self.set(start)

    def get(self) -> Value:
        """What it is now."""
        return Value(self.code, self.code.build.load(self.place, typ=self.kind))

    def set(self, value: Value) -> None:
        """Change it."""
        self.code.build.store(value.value, self.place)

    def add(self, a: Value, b: Value) -> None:
        """Add a product."""
        self.set(self.code.fused(a, b, self.get()))


class Code:
    """What is written down of one function.

    Args:
        function: where to.
        library: whose function it is.
        widths: columns taken at a time, descending, down to 1.
    """

    def __init__(self, function: ir.Function, library: Library, widths: Sequence[int]) -> None:
        self.function, self.library, self.real, self.widths = function, library, library.real, tuple(widths)
        self.build = ir.IRBuilder(function.append_basic_block("entry"))

    def number(self, value: int) -> Value:
        """A whole number."""
        return Value(self, ir.Constant(INT, value))

    def constant(self, value: float) -> Value:
        """A real number."""
        return Value(self, ir.Constant(self.real, float(value)))

    def spread(self, value: Value, width: int) -> Value:
        """The same real number in all places of a vector."""
        if width == 1:
            return value
        kind = ir.VectorType(self.real, width)
        first = self.build.insert_element(ir.Constant(kind, ir.Undefined), value.value, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
        return Value(self, self.build.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask))

    def zeros(self, count: int, width: int) -> list[Variable]:
        """So many variables for sums, of vectors of that width."""
        return [Variable(self, self.spread(self.constant(0), width)) for _ in range(count)]

    def total(self, values: Sequence[Value]) -> Value:
        """The sum of all places of some vectors, of each its halves first."""
        sums = []
        for value in values:
            kind, parts = value.value.type, [value]
            if isinstance(kind, ir.VectorType):
                places = (ir.Constant(ir.IntType(32), k) for k in range(kind.count))
                parts = [Value(self, self.build.extract_element(value.value, place)) for place in places]
            while len(parts) > 1:
                half = len(parts) // 2
                parts = [parts[k] + parts[k + half] for k in range(half)]
            sums += parts
        return sum(sums[1:], start=sums[0])

    def alike(self, a: Value | float, b: Value | float) -> tuple[Value, Value]:
        """Both of one type: Python's numbers as the other's, single numbers as vectors."""
        if not isinstance(a, Value):
            assert isinstance(b, Value)
            other, mine = self.alike(b, a)
            return mine, other
        if not isinstance(b, Value):
            b = self.number(int(b)) if a.whole else self.constant(b)
        vectors = [isinstance(v.value.type, ir.VectorType) for v in (a, b)]
        if vectors[0] and not vectors[1]:
            b = self.spread(b, a.value.type.count)
        if vectors[1] and not vectors[0]:
            a = self.spread(a, b.value.type.count)
        return a, b

    def real_of(self, value: Value) -> Value:
        """A whole number as a real one."""
        if isinstance(value.value.type, ir.VectorType):  # of bytes
            return Value(self, self.build.uitofp(value.value, ir.VectorType(self.real, value.value.type.count)))
        return Value(self, self.build.sitofp(value.value, self.real))

    def fused(self, a: Value, b: Value, c: Value) -> Value:
        """a·b + c of real numbers, rounded once where the processor can."""
        a, b = self.alike(a, b)
        a, c = self.alike(a, c)
        b, _ = self.alike(b, a)
        kind, module = a.value.type, self.build.module
        places = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
        name = f"llvm.fmuladd.{places}{self.real.intrinsic_name}"
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind] * 3), name)
        return Value(self, self.build.call(function, [a.value, b.value, c.value]))

    def dot(self, *pairs: tuple[Value, Value]) -> Value:
        """Σ a·b, in this order."""
        total = pairs[0][0] * pairs[0][1]
        for a, b in pairs[1:]:
            total = self.fused(a, b, total)
        return total

    def odd(self, value: Value) -> Value:
        """1 where a whole number has an odd number of bits set, else 0."""
        return Value(self, self.build.ctpop(value.value)) & 1

    def scratch(self, count: int) -> Pointer:
        """Room for so many real numbers."""
        with self.build.goto_entry_block():
            place = self.build.alloca(ir.ArrayType(self.real, count))
            place.align = 64
        place.type = POINTER  # llvmlite still gives it one of the array
        return Pointer(self, place, self.real)

    def pointer(self, address: Value, kind: ir.Type | None = None) -> Pointer:
        """Numbers at an address, real ones if not told otherwise."""
        return Pointer(self, self.build.inttoptr(address.value, POINTER), kind or self.real)

    def address(self, pointer: Pointer) -> Value:
        """Where numbers are, as a whole number."""
        return Value(self, self.build.ptrtoint(pointer.value, INT))

    def call(self, name: str, *arguments: Value | Pointer) -> Value:
        """What another function of the same library returns, which is compiled first and called where it lies."""
        address = ctypes.cast(self.library[name], ctypes.c_void_p).value  # type: ignore[arg-type]
        callee = self.build.inttoptr(ir.Constant(INT, address), self.library.kind(name).as_pointer())
        return Value(self, self.build.call(callee, [a.value for a in arguments]))

    def of_libm(self, name: str, value: Value) -> Value:
        """A function of one real number of the C library: "cos", "sin"."""
        name, module = name + "f" * (self.real == ir.FloatType()), self.build.module
        kind = ir.FunctionType(self.real, [self.real])
        return Value(self, self.build.call(module.globals.get(name) or ir.Function(module, kind, name), [value.value]))

    def double(self, value: Value) -> Value:
        """A real number in double precision; two such can be added and multiplied."""
        kind = ir.DoubleType()
        return value if value.value.type == kind else Value(self, self.build.fpext(value.value, kind))

    def single(self, value: Value) -> Value:
        """A number in double precision as a real one."""
        return value if self.real == ir.DoubleType() else Value(self, self.build.fptrunc(value.value, self.real))

    def not_a_number(self, value: Value) -> Value:
        """1 for NaN, else 0."""
        return Value(self, self.build.zext(self.build.fcmp_unordered("uno", value.value, value.value), INT))

    def where(self, value: Value) -> Iterator[None]:
        """The body where a whole number is not negative."""
        body, after = self.function.append_basic_block("where"), self.function.append_basic_block("after")
        self.build.cbranch(self.build.icmp_signed(">=", value.value, ir.Constant(INT, 0)), body, after)
        self.build.position_at_end(body)
        yield
        self.build.branch(after)
        self.build.position_at_end(after)

    def loop(self, stop: Value | int, start: Value | int = 0, step: int = 1) -> Iterator[Value]:
        """`range(start, stop, step)`, the body once."""
        zero = self.number(0)
        return self._loop(self.alike(start, zero)[0], self.alike(stop, zero)[0], step)

    def _loop(self, start: Value, stop: Value, step: int) -> Iterator[Value]:
        build, before = self.build, self.build.block
        body, after = self.function.append_basic_block("loop"), self.function.append_basic_block("after")
        down = step < 0
        build.cbranch(build.icmp_signed(">" if down else "<", start.value, stop.value), body, after)
        build.position_at_end(body)
        index = build.phi(INT)
        index.add_incoming(start.value, before)
        yield Value(self, index)
        following = build.add(index, ir.Constant(INT, step))
        index.add_incoming(following, build.block)
        build.cbranch(build.icmp_signed(">" if down else "<", following, stop.value), body, after)
        build.position_at_end(after)

    def whilst(self, value: Callable[[], Value]) -> Iterator[None]:
        """The body again and again as long as a whole number, made anew each time, is not negative."""
        test, body, after = (self.function.append_basic_block(name) for name in ("test", "again", "after"))
        self.build.branch(test)
        self.build.position_at_end(test)
        self.build.cbranch(self.build.icmp_signed(">=", value().value, ir.Constant(INT, 0)), body, after)
        self.build.position_at_end(body)
        yield
        self.build.branch(test)
        self.build.position_at_end(after)

    def columns(self, count: Value, wide: bool = False) -> Iterator[Lane]:
        """All columns: as many as there are of the largest width at a time, then of the next; the body once a width.

        With `wide` twice that width comes first: for what adds up nothing over columns, which is the same either way.
        """
        done = self.number(0)
        for width in (*[2 * self.widths[0]] * wide, *self.widths):
            if width == 1:
                for at in self.loop(count, done):
                    yield Lane(at, 1)
            else:
                stop = Value(self, self.build.and_(count.value, ir.Constant(INT, -width)))
                for at in self.loop(stop, done, width):
                    yield Lane(at, width)
                done = stop

    def choose(self, what: Value, cases: Sequence[Callable[[], None]]) -> None:
        """Run the case of that number; none for any other."""
        after = self.function.append_basic_block("chosen")
        switch = self.build.switch(what.value, after)
        for number, case in enumerate(cases):
            block = self.function.append_basic_block("case")
            switch.add_case(ir.Constant(INT, number), block)
            self.build.position_at_end(block)
            case()
            self.build.branch(after)
        self.build.position_at_end(after)


class Unpacked:
    """Whole numbers and pointers from whole numbers one behind the other; each is read when it is asked for, once.

    `arguments`: their names in order, and kinds as in a `Definition`.
    """

    def __init__(self, code: Code, packed: Pointer, arguments: Mapping[str, str]) -> None:
        self.code, self.packed, self.arguments = code, packed, arguments
        self._kinds = {"real": code.real, "double": ir.DoubleType(), "int": INT}
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            with self.code.build.goto_entry_block():  # which comes before whatever asks for it later
                value, kind = self.packed[list(self.arguments).index(name)], self.arguments[name]
                self._read[name] = value if kind == "n" else self.code.pointer(value, self._kinds[kind])
        return self._read[name]


# body(code, *arguments), which may return a whole number, and the arguments: "n", a whole number, or what a pointer
# points to, "real", "double", "int" or "byte"
Definition = tuple[Callable[..., Value | None], Sequence[str]]


class Library(dict[str, Callable[..., int]]):
    """Compiled functions by their names. Each is compiled once, when it is first asked for or called by another one.

    Called, they let other threads run. They live as long as the process.

    Args:
        real: "float" or "double".
        definitions: of all functions.
        widths: columns taken at a time, descending, down to 1.
    """

    def __init__(self, real: str, definitions: Mapping[str, Definition], widths: Sequence[int]) -> None:
        super().__init__()
        self.real = {"float": ir.FloatType(), "double": ir.DoubleType()}[real]
        self._kinds = {"real": self.real, "double": ir.DoubleType(), "int": INT, "byte": BYTE}
        self._definitions, self._widths = definitions, widths
        self._compiling = threading.RLock()  # what a function calls is compiled while that one is written down

    def __missing__(self, name: str) -> Callable[..., int]:
        with self._compiling:
            if name not in self:
                self[name] = self._compiled(self._written_down(name), name)
        return self[name]

    def kind(self, name: str) -> ir.FunctionType:
        """The type of a function."""
        return ir.FunctionType(INT, [INT if a == "n" else POINTER for a in self._definitions[name][1]])

    def _written_down(self, name: str) -> ir.Module:
        body, arguments = self._definitions[name]
        module = ir.Module("qhw_diffusion")
        function = ir.Function(module, self.kind(name), name)
        code = Code(function, self, self._widths)
        given = [
            Value(code, v) if a == "n" else Pointer(code, v, self._kinds[a])
            for a, v in zip(arguments, function.args, strict=True)
        ]
        result = body(code, *given)
        code.build.ret(ir.Constant(INT, 0) if result is None else result.value)
        return module

    def _compiled(self, written: ir.Module, name: str) -> Callable[..., int]:
        machine = _machine()
        module = llvm.parse_assembly(str(written))
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        module.verify()
        tuning = llvm.create_pipeline_tuning_options(speed_level=1)
        tuning.loop_unrolling = tuning.loop_interleaving = False  # a body is a vector wide and long enough as it is
        passes = llvm.create_pass_builder(machine, tuning)
        passes.getModulePassManager().run(module, passes)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        _ENGINES.append(engine)
        arguments = [ctypes.c_int64] * len(self._definitions[name][1])
        return ctypes.CFUNCTYPE(ctypes.c_int64, *arguments)(engine.get_function_address(name))


_ENGINES: list[llvm.ExecutionEngine] = []


@cache
def _target() -> llvm.Target:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


def _machine() -> llvm.TargetMachine:
    features = llvm.get_host_cpu_features().flatten()
    return _target().create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True)
