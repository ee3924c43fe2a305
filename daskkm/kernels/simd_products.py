"""Scores of a panel of tiles with all centroids, and sums of tiles: the innermost loops.

8-bit tiles are multiplied with 16-bit weights into 32-bit sums, exactly. x86 has an instruction
that multiplies pairs of 16-bit numbers and adds each pair. AVX-512 VNNI adds the pair to a sum as
well. LLVM emits these instructions for one pattern, to which no loop in Python compiles. So the
innermost functions are written in LLVM's portable vectors. `_transpose` widens tiles and puts pairs
of features of neighbouring tiles side by side. `_make_dot` then has a tile in each lane and needs
no sum across lanes. One core with AVX-512 VNNI makes 230 billion multiply-adds a second of 256
features, close to the limit of the core; float32 reaches 66.

Other tiles are multiplied in float32 or float64 by loops that the compiler vectorises. A function
with array parameters costs a call and numba's reference counting, tens of cycles each. Functions
written as vectors are inlined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import extending, types

from daskkm.kernels.compilation import compile_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# Tiles of a panel, which stays in L1/L2 with its scores. A multiple of any `LANES` * `VECTORS`.
PANEL = 64

LINE = 64  # bytes of a cache line

# 32-bit numbers in a vector, and vectors of tiles that share the load of a weight. Sums of four
# centroids take sixteen of AVX-512's 32 registers, else eight of 16.
LANES, VECTORS = (16, 4) if get_host_cpu_features().get("avx512bw") else (8, 2)

# Pairs of features that are transposed at once: a panel's, 32 KiB, stay in L1.
PAIRS = 128

# Any order of summation, any FMA: the bound in `daskkm.kernels.prepared_stack` covers both.
_ANY_ORDER = {"reassoc", "contract", "nsz"}

# Untyped: the types of numba demand the context, which numba itself passes.
intrinsic: Any = extending.intrinsic

_BYTE, _SHORT, _INT, _INDEX = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def allocate_aligned(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialised array whose vectors never straddle two cache lines."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    raw = np.empty(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size].view(dtype).reshape(shape)


@compile_kernel
def score(tiles: Any, weights: Any, bias: Any, pairs: Any, scores: Any) -> None:
    """Write bias + weights @ tiles.T of at most PANEL tiles into `scores`, (sum of k, PANEL).

    Columns of `scores` beyond the tiles are undefined. `pairs` is scratch of shape (PAIRS, PANEL)
    for integer weights, and one row for floats.
    """
    # numba compiles only the branch for this number of dimensions.
    if pairs.ndim == 1:
        _score_floats(tiles, weights, bias, scores)
    else:
        _score_pairs(tiles, weights, bias, pairs, scores)


@compile_kernel
def _score_pairs(tiles: Any, weights: Any, bias: Any, pairs: Any, scores: Any) -> None:
    """Transpose and multiply integers, 2 * PAIRS features of all tiles at a time."""
    d, k = tiles.shape[1], len(weights)
    for first in range(0, weights.shape[1], PAIRS):
        n_pairs = min(PAIRS, weights.shape[1] - first)
        _transpose_all(tiles[:, 2 * first : min(d, 2 * (first + n_pairs))], pairs)
        for j in range(0, k - 3, 4):
            for i in range(0, len(tiles), LANES * VECTORS):
                _dot_4(pairs, i, weights, j, first, n_pairs, bias, scores)
        for i in range(0, len(tiles), LANES * VECTORS):
            if k & 2:
                _dot_2(pairs, i, weights, k & ~3, first, n_pairs, bias, scores)
            if k & 1:
                _dot_1(pairs, i, weights, k - 1, first, n_pairs, bias, scores)


@compile_kernel
def _transpose_all(tiles: Any, pairs: Any) -> None:
    """Transpose tiles in squares of vectors, and the rest one by one."""
    n, d = tiles.shape
    whole, squares = n - n % LANES, d - d % (2 * LANES)
    for i in range(0, whole, LANES):
        for p in range(0, squares, 2 * LANES):
            _transpose(tiles, i, p, pairs)
    for i in range(n):
        for p in range(squares if i < whole else 0, d, 2):
            low = np.int32(tiles[i, p])
            high = np.int32(tiles[i, p + 1]) if p + 1 < d else np.int32(0)
            pairs[p >> 1, i] = np.int32(high << 16) | np.int32(low & 0xFFFF)


@compile_kernel(fastmath=_ANY_ORDER)
def _score_floats(tiles: Any, weights: Any, bias: Any, scores: Any) -> None:
    """Multiply in the type of the weights, two tiles by four centroids, widened in register.

    Eight sums share each load. Centroids are the outer loop, so that a large stack streams through
    cache once a panel and not once a tile. BLAS is slower: with 256 features on one core with
    AVX-512, OpenBLAS's sgemm reaches 29, 53 and 54 billion multiply-adds a second at 25, 256 and
    4,096 centroids. This loop reaches 59, 68 and 69.
    """
    n, d = tiles.shape
    k = len(weights)
    number = weights.dtype.type
    for j in range(0, k - 3, 4):
        for i in range(0, n, 2):
            i1 = min(i + 1, n - 1)
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = number(0)
            for p in range(d):
                x0, x1 = number(tiles[i, p]), number(tiles[i1, p])
                w0, w1 = weights[j, p], weights[j + 1, p]
                w2, w3 = weights[j + 2, p], weights[j + 3, p]
                a0 += x0 * w0
                a1 += x0 * w1
                a2 += x0 * w2
                a3 += x0 * w3
                b0 += x1 * w0
                b1 += x1 * w1
                b2 += x1 * w2
                b3 += x1 * w3
            scores[j, i], scores[j, i1] = bias[j] + a0, bias[j] + b0
            scores[j + 1, i], scores[j + 1, i1] = bias[j + 1] + a1, bias[j + 1] + b1
            scores[j + 2, i], scores[j + 2, i1] = bias[j + 2] + a2, bias[j + 2] + b2
            scores[j + 3, i], scores[j + 3, i1] = bias[j + 3] + a3, bias[j + 3] + b3
    for j in range(k - k % 4, k):
        for i in range(0, n, 2):
            i1 = min(i + 1, n - 1)
            a0 = b0 = number(0)
            for p in range(d):
                a0 += number(tiles[i, p]) * weights[j, p]
                b0 += number(tiles[i1, p]) * weights[j, p]
            scores[j, i], scores[j, i1] = bias[j] + a0, bias[j] + b0


def _index(value: int) -> ir.Constant:
    """Return an index or a count of elements as a constant."""
    return ir.Constant(_INDEX, value)


def _make_lanes(indices: Sequence[int]) -> ir.Constant:
    """Return as a constant the indices of a shuffle into two concatenated vectors."""
    return ir.Constant(ir.VectorType(_INT, len(indices)), [ir.Constant(_INT, i) for i in indices])


def _emit_loop(
    builder: ir.IRBuilder,
    stop: ir.Value,
    step: int,
    starts: Sequence[ir.Value],
    body: Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]],
) -> Sequence[ir.Value]:
    """Emit a loop over 0, step, ... below stop > 0; return the last values of the body.

    ``body(p, values)`` returns the values for the next round. The first round gets `starts`.
    """
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    p, values = builder.phi(_INDEX), [builder.phi(start.type) for start in starts]
    results = body(p, values)
    following = builder.add(p, _index(step))
    edges = zip([p, *values], [_index(0), *starts], [following, *results], strict=True)
    for value, first, later in edges:
        value.add_incoming(first, before)
        value.add_incoming(later, loop)
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)
    builder.position_at_end(after)
    return results


def _add_pairs(builder: ir.IRBuilder, total: ir.Value, product: ir.Value) -> ir.Value:
    """Add each even product and the next odd product to a sum: LLVM's pattern for x86."""
    none, lanes = ir.Constant(product.type, ir.Undefined), product.type.count
    even = builder.shuffle_vector(product, none, _make_lanes(range(0, lanes, 2)))
    odd = builder.shuffle_vector(product, none, _make_lanes(range(1, lanes, 2)))
    return builder.add(total, builder.add(even, odd))


class _Rows:
    """Addresses of the elements of a contiguous 2-D array in LLVM."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: Any, array: Any) -> None:
        self._builder = builder
        view = context.make_array(kind)(context, builder, array)
        self._data, self._strides = view.data, view.strides
        self._itemsize = context.get_abi_sizeof(context.get_data_type(kind.dtype))

    def at(self, row: ir.Value, column: ir.Value, of: ir.Type) -> ir.Value:
        """Return a pointer to a vector or a number that starts at an element."""
        builder = self._builder
        stride = builder.sdiv(builder.extract_value(self._strides, 0), _index(self._itemsize))
        offset = builder.add(builder.mul(row, stride), column)
        return builder.bitcast(builder.gep(self._data, [offset]), of.as_pointer())


@intrinsic
def _transpose(typing_context: Any, tiles: Any, i: Any, p: Any, pairs: Any) -> Any:
    """Write pairs of features of LANES tiles, from tile i and feature p on: a row for each pair."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tiles, i, p, pairs = arguments
        source = _Rows(context, builder, signature.args[0], tiles)
        target = _Rows(context, builder, signature.args[3], pairs)
        narrow, wide = ir.VectorType(_BYTE, 2 * LANES), ir.VectorType(_SHORT, 2 * LANES)
        pair = ir.VectorType(_INT, LANES)
        extend = builder.sext if signature.args[0].dtype.signed else builder.zext
        rows = []
        for r in range(LANES):
            row = builder.load(source.at(builder.add(i, _index(r)), p, narrow), align=1)
            rows.append(builder.bitcast(extend(row, wide), pair))
        # Transpose blocks of half the size, of a quarter, ...: swap the two off the diagonal.
        h = LANES // 2
        while h:
            upper = _make_lanes([lane ^ h | LANES if lane & h else lane for lane in range(LANES)])
            lower = _make_lanes([lane | LANES if lane & h else lane ^ h for lane in range(LANES)])
            for r in range(LANES):
                if not r & h:
                    a, b = rows[r], rows[r | h]
                    rows[r] = builder.shuffle_vector(a, b, upper)
                    rows[r | h] = builder.shuffle_vector(a, b, lower)
            h //= 2
        first = builder.lshr(p, _index(1))
        for r, row in enumerate(rows):
            builder.store(row, target.at(builder.add(first, _index(r)), i, pair), align=4)
        return context.get_dummy_value()

    return types.void(tiles, types.intp, types.intp, pairs), generate


@intrinsic
def add_vectors(typing_context: Any, tiles: Any, i: Any, sums: Any, j: Any, d: Any) -> Any:
    """Add d > 0 features of tile i, a whole number of vectors, to row j of the sums."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tiles, i, sums, j, d = arguments
        source = _Rows(context, builder, signature.args[0], tiles)
        target = _Rows(context, builder, signature.args[2], sums)
        size, signed = signature.args[0].dtype.bitwidth // 8, signature.args[0].dtype.signed
        lanes = LANES * 2 // size
        narrow = ir.VectorType(ir.IntType(8 * size), lanes)
        wide = ir.VectorType(ir.IntType(16 * size), lanes)

        def add(p: ir.Value, _: Any) -> list[ir.Value]:
            tile = builder.load(source.at(i, p, narrow), align=size)
            tile = builder.sext(tile, wide) if signed else builder.zext(tile, wide)
            pointer = target.at(j, p, wide)
            total = builder.load(pointer, align=2 * size)
            builder.store(builder.add(total, tile), pointer, align=2 * size)
            return []

        _emit_loop(builder, d, lanes, [], add)
        return context.get_dummy_value()

    index = types.intp
    return types.void(tiles, index, sums, index, index), generate


@intrinsic
def dot_vectors(typing_context: Any, tiles: Any, i: Any, weights: Any, j: Any, d: Any) -> Any:
    """Return 8-bit tile i times row j of 16-bit weights, d > 0 features of whole vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tiles, i, weights, j, d = arguments
        x = _Rows(context, builder, signature.args[0], tiles)
        w = _Rows(context, builder, signature.args[2], weights)
        extend = builder.sext if signature.args[0].dtype.signed else builder.zext
        lanes = 2 * LANES
        short, wide, total = (
            ir.VectorType(_SHORT, lanes),
            ir.VectorType(_INT, lanes),
            ir.VectorType(_INT, LANES),
        )

        def multiply(p: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            tile = builder.load(x.at(i, p, ir.VectorType(_BYTE, lanes)), align=1)
            weight = builder.load(w.at(j, p, short), align=2)
            product = builder.mul(extend(tile, wide), builder.sext(weight, wide))
            return [_add_pairs(builder, sums[0], product)]

        sums = _emit_loop(builder, d, lanes, [ir.Constant(total, None)], multiply)
        reduce = builder.module.declare_intrinsic(
            f"llvm.vector.reduce.add.v{LANES}i32", (), ir.FunctionType(_INT, (total,))
        )
        return builder.call(reduce, sums)

    return types.int32(tiles, types.intp, weights, types.intp, types.intp), generate


@intrinsic
def prefetch(typing_context: Any, tiles: Any, i: Any, p: Any) -> Any:
    """Prefetch the cache line that holds feature p of tile i."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tiles, i, p = arguments
        pointer = _Rows(context, builder, signature.args[0], tiles).at(i, p, _BYTE)
        kinds = (pointer.type, _INT, _INT, _INT)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", (pointer.type,), ir.FunctionType(ir.VoidType(), kinds)
        )
        # To read; into all caches; data.
        builder.call(function, [pointer, *(ir.Constant(_INT, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(tiles, types.intp, types.intp), generate


def _make_dot(centroids: int) -> Any:
    """Return a kernel that multiplies VECTORS vectors of tiles by this many centroids."""

    @intrinsic
    def dot(
        typing_context: Any,
        pairs: Any,
        i: Any,
        weights: Any,
        j: Any,
        first: Any,
        n_pairs: Any,
        biases: Any,
        scores: Any,
    ) -> Any:
        """Add n_pairs pairs, the weights' from `first` on, to the scores of tile i, centroid j on.

        The scores of the first pair start at the bias.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_dot(centroids, context, builder, signature, arguments)
            return context.get_dummy_value()

        index = types.intp
        arguments = (pairs, index, weights, index, index, index, biases, scores)
        return types.void(*arguments), generate

    return dot


def _emit_dot(
    centroids: int, context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any
) -> None:
    """Emit the code of `_make_dot`."""
    pairs, i, weights, j, first, n_pairs, biases, scores = arguments
    x = _Rows(context, builder, signature.args[0], pairs)
    w = _Rows(context, builder, signature.args[2], weights)
    y = _Rows(context, builder, signature.args[7], scores)
    bias = context.make_array(signature.args[6])(context, builder, biases).data
    short, wide = ir.VectorType(_SHORT, 2 * LANES), ir.VectorType(_INT, 2 * LANES)
    total = ir.VectorType(_INT, LANES)
    cells = [(c, v) for c in range(centroids) for v in range(VECTORS)]
    columns = [builder.add(i, _index(v * LANES)) for v in range(VECTORS)]
    rows = [builder.add(j, _index(c)) for c in range(centroids)]

    def multiply(p: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
        tiles = [builder.load(x.at(p, column, short), align=4) for column in columns]
        tiles = [builder.sext(tile, wide) for tile in tiles]
        feature = builder.add(first, p)
        factors = []
        for row in rows:
            weight = _broadcast(builder, builder.load(w.at(row, feature, _INT), align=4))
            factors.append(builder.sext(builder.bitcast(weight, short), wide))
        return [
            _add_pairs(builder, total, builder.mul(tiles[v], factors[c]))
            for (c, v), total in zip(cells, sums, strict=True)
        ]

    is_first = builder.icmp_signed("==", first, _index(0))
    outputs = [y.at(rows[c], columns[v], total) for c, v in cells]
    biases = [_broadcast(builder, builder.load(builder.gep(bias, [row]), align=4)) for row in rows]
    starts = [
        builder.select(is_first, biases[c], builder.load(output, align=4))
        for (c, _), output in zip(cells, outputs, strict=True)
    ]
    sums = _emit_loop(builder, n_pairs, 1, starts, multiply)
    for value, output in zip(sums, outputs, strict=True):
        builder.store(value, output, align=4)


def _broadcast(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """Return a vector with a 32-bit number in each of LANES lanes."""
    zero = ir.Constant(ir.VectorType(_INT, LANES), None)
    lane = builder.insert_element(zero, number, ir.Constant(_INT, 0))
    return builder.shuffle_vector(lane, zero, _make_lanes([0] * LANES))


_dot_4, _dot_2, _dot_1 = _make_dot(4), _make_dot(2), _make_dot(1)
