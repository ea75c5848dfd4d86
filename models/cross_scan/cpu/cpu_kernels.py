"""Forward and backward of the cross-scan in numba, on SIMD vectors: the part of the "cpu" backend that is compiled.

A vector holds 16 neighbouring channels, and a pair of vectors two states of them, so no sum runs along the lanes of the
recurrence. LLVM maps a vector to one AVX-512 register, two of AVX2 or four of NEON. A task is one image, two of the
four directions and, in the forward, some blocks of 16 channels; it walks the directions one after the other, in tiles
of 32 steps. A direction is only a list of pixels. For a block and a tile the steps are projected, then every pair of
states runs through the tile on its own, with the state in a register and all it reads in the nearest cache, while the
next block's pixels are being fetched. In the forward, exponents that could leave the range of floats take a loop of
their own.

The forward keeps the state at the start of each tile; the backward computes a tile's states again from there. Sums over
pixels are kept per image, sums over directions per two of them, and added up afterwards in a fixed order: no atomics,
and the same bits for any number of threads.

Arrays are one-dimensional with offsets, in floats. The vector type stands in this file because numba's cache of
compiled code notices changes in a kernel's own file only.
"""

import contextlib
import io
import logging
import operator
from collections import namedtuple
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.caching import IndexDataCacheFile
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from ...kernels.kept_code import read_sealed, seal

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")
LANES = 16  # channels in a vector
TILE = 32  # steps in a tile, a multiple of 4
log = logging.getLogger("vmunet")

# ---- vectors: a type, arithmetic, loads and stores


class Vector(types.Type):
    """A SIMD vector of `width` floats as a numba type."""

    def __init__(self, width):
        super().__init__(name=f"Vector{width}")
        self.width = width
        self.floats = ir.VectorType(ir.FloatType(), width)
        self.ints = ir.VectorType(ir.IntType(32), width)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.floats)


LANE = Vector(LANES)  # 16 channels
PAIR = Vector(2 * LANES)  # 16 channels of one state, and the same channels of the next
INT32 = ir.IntType(32)


def define_operator(function, instruction):
    @type_callable(function)
    def type_of(context):
        return lambda a, b: a if isinstance(a, Vector) and a == b else None

    @lower_builtin(function, Vector, Vector)
    def emit(context, builder, signature, args):
        return getattr(builder, instruction)(*args)


define_operator(operator.add, "fadd")
define_operator(operator.sub, "fsub")
define_operator(operator.mul, "fmul")


def constant(vector, value):
    return ir.Constant(vector.floats, [ir.Constant(ir.FloatType(), float(np.float32(value)))] * vector.width)


def call(builder, name, *args):
    """One of LLVM's functions on vectors."""
    vector = args[0].type
    function = ir.FunctionType(vector, [vector] * len(args))
    name = f"llvm.{name}.v{vector.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def shuffle(builder, a, b, lanes):
    """The numbered lanes of a, then b, in this order."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes)))


def repeat(builder, scalar):
    nothing = ir.Constant(LANE.floats, ir.Undefined)
    return shuffle(builder, builder.insert_element(nothing, scalar, INT32(0)), nothing, [0] * LANES)


def address(context, builder, array_type, array, index, of=None):
    """Pointer to array[index], to a vector there if `of` is one."""
    pointer = builder.gep(context.make_array(array_type)(context, builder, array).data, [index])
    return pointer if of is None else builder.bitcast(pointer, of.as_pointer())


def loading(vector):
    @intrinsic
    def load(typing, array, index):
        def emit(context, builder, signature, args):
            return builder.load(address(context, builder, signature.args[0], *args, of=vector.floats), align=4)

        return vector(array, types.intp), emit

    return load


load, load_pair = loading(LANE), loading(PAIR)


@intrinsic
def store(typing, array, index, vector):
    def emit(context, builder, signature, args):
        array, index, value = args
        builder.store(value, address(context, builder, signature.args[0], array, index, of=value.type), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@intrinsic
def prefetch(typing, array, index):
    """Ask for the cache line of array[index]; it may lie outside the array."""

    def emit(context, builder, signature, args):
        pointer = address(context, builder, signature.args[0], *args, of=ir.IntType(8))
        function = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        builder.call(function, [pointer, INT32(0), INT32(3), INT32(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def splat(typing, value):
    return LANE(types.float32), lambda context, builder, signature, args: repeat(builder, args[0])


@intrinsic
def both(typing, vector):
    """The pair with the same 16 channels twice."""
    return PAIR(LANE), lambda context, builder, signature, args: shuffle(builder, *args, *args, range(2 * LANES))


@intrinsic
def broadcast(typing, array, index):
    """array[index] in every lane."""

    def emit(context, builder, signature, args):
        return repeat(builder, builder.load(address(context, builder, signature.args[0], *args)))

    return LANE(array, types.intp), emit


@intrinsic
def broadcast_pair(typing, array, index):
    """array[index] in the first 16 lanes, array[index + 1] in the others."""

    def emit(context, builder, signature, args):
        pointer = address(context, builder, signature.args[0], *args)
        halves = [repeat(builder, builder.load(builder.gep(pointer, [INT32(i)]))) for i in range(2)]
        return shuffle(builder, *halves, range(2 * LANES))

    return PAIR(array, types.intp), emit


@intrinsic
def fma(typing, a, b, c):
    return a(a, a, a), lambda context, builder, signature, args: call(builder, "fma", *args)


@intrinsic
def add_products(typing, a, b, total):
    """total + a b, the products of a pair summed over its two states."""

    def emit(context, builder, signature, args):
        a, b, total = args
        for half in (range(LANES), range(LANES, 2 * LANES)):
            total = call(builder, "fma", shuffle(builder, a, a, half), shuffle(builder, b, b, half), total)
        return total

    return LANE(PAIR, PAIR, LANE), emit


@intrinsic
def lane_sums(typing, array, index):
    """The sums over the lanes of 16 vectors, the n-th in lane n. Their places are `of_state`'s."""

    def emit(context, builder, signature, args):
        array, index = args
        places = [builder.add(index, index.type(of_state(n))) for n in range(LANES)]
        pointers = [address(context, builder, signature.args[0], array, i, of=LANE.floats) for i in places]
        vectors = [builder.load(pointer, align=4) for pointer in pointers]
        half = LANES // 2
        while half:  # halves the number of vectors, and what each lane still has to be added to
            in_first = [lane % (2 * half) < half for lane in range(LANES)]
            low = [lane if first else lane - half + LANES for lane, first in enumerate(in_first)]
            high = [lane + half if first else lane + LANES for lane, first in enumerate(in_first)]
            pairs = zip(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :], strict=True)
            vectors = [builder.fadd(shuffle(builder, a, b, low), shuffle(builder, a, b, high)) for a, b in pairs]
            half //= 2
        return vectors[0]

    return LANE(array, types.intp), emit


def of_state(n):
    """Where state n of step 0 lies in an array of (N / 2 pairs, TILE steps, 2 states, 16 channels)."""
    return (n // 2 * TILE * 2 + n % 2) * LANES


# ---- functions of vectors. The polynomials are minimax fits: of 2^x on [-1/2, 1/2] to 9e-8 of its value, and of
# log(1 + z) / z on [0, 1] to 3e-8. Both start with an exact 1.

EXP2 = (1, 0.69314700365, 0.24022242427, 0.05550733581, 0.00967151299, 0.00132647273)
LOG1P = (1, -0.49999648332, 0.33321323991, -0.24857163429, 0.19153656065,
         -0.13753803074, 0.07920455188, -0.03006580099, 0.00536482641)  # fmt: skip
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453


def polynomial(builder, vector, x, coefficients):
    value = constant(vector, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = call(builder, "fma", value, x, constant(vector, coefficient))
    return value


def maximum(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


LOWEST_EXPONENT = -126  # of a normal number


def emit_exp2(builder, vector, x, y, y_rest=None, in_range=False):
    """2^(x y) for x y <= 0; 0, or at most 2^-126, below 2^-126. y_rest: what y lacks of a constant that it stands for.
    in_range: x y is known not to be below -125.

    Adding 1.5 * 2^23 rounds to an integer, which is in the lowest bits then. Shifted into the exponent's place and
    added there, it multiplies by its power of two without the units that multiply, which have enough to do."""
    magic = 1.5 * 2**23
    rounded = call(builder, "fma", x, y, constant(vector, magic))
    fraction = call(builder, "fma", x, y, builder.fsub(constant(vector, magic), rounded))
    if y_rest is not None:
        fraction = call(builder, "fma", x, constant(vector, y_rest), fraction)
    exponent = builder.shl(builder.bitcast(rounded, vector.ints), ir.Constant(vector.ints, [23] * vector.width))
    mantissa = builder.bitcast(polynomial(builder, vector, fraction, EXP2), vector.ints)
    power = builder.add(mantissa, exponent)
    if not in_range:
        normal = builder.fcmp_unordered(">=", rounded, constant(vector, magic + LOWEST_EXPONENT))  # NaN, too, stays
        power = builder.select(normal, power, ir.Constant(vector.ints, [0] * vector.width))
    return builder.bitcast(power, vector.floats)


def emit_exp_of_minus_abs(builder, vector, x):
    rest = float(np.float32(LOG2E)) - LOG2E
    return emit_exp2(builder, vector, call(builder, "fabs", x), constant(vector, -LOG2E), rest)


def exponential(in_range):
    """Make the function 2^(x y), with the product unrounded; in_range: x y is known not to be below -125."""

    @intrinsic
    def exp2(typing, x, y):
        return x(x, x), lambda context, builder, signature, args: emit_exp2(builder, x, *args, in_range=in_range)

    return exp2


exp2_of_product, exp2_in_range = exponential(False), exponential(True)


@intrinsic
def all_in_range(typing, x, y):
    """Whether every lane of x y is at least -125, which NaN is not."""

    def emit(context, builder, signature, args):
        vector = signature.args[0]
        lanes = builder.fcmp_ordered(">=", builder.fmul(*args), constant(vector, LOWEST_EXPONENT + 1))
        together = ir.IntType(vector.width)
        return builder.icmp_unsigned("==", builder.bitcast(lanes, together), together(-1))

    return types.boolean(x, x), emit


@intrinsic
def larger(typing, x, y):
    """The maximum of each lane."""
    return x(x, x), lambda context, builder, signature, args: maximum(builder, *args)


@intrinsic
def softplus(typing, x):
    """log(1 + exp(x)). Beyond PyTorch's threshold of 20 it equals x in float32 by itself."""

    def emit(context, builder, signature, args):
        (x,), vector = args, signature.return_type
        z = emit_exp_of_minus_abs(builder, vector, x)
        log1p = builder.fmul(z, polynomial(builder, vector, z, LOG1P))
        return builder.fadd(maximum(builder, x, constant(vector, 0)), log1p)

    return x(x), emit


@intrinsic
def sigmoid(typing, x):
    """The derivative of softplus; compiled together with it, they share the exponential."""

    def emit(context, builder, signature, args):
        (x,), vector = args, signature.return_type
        z = emit_exp_of_minus_abs(builder, vector, x)
        inverse = builder.fdiv(constant(vector, 1), builder.fadd(constant(vector, 1), z))
        negative = builder.fcmp_ordered("<", x, constant(vector, 0))
        return builder.select(negative, builder.fmul(z, inverse), inverse)

    return x(x), emit


# ---- kernels

Inputs = namedtuple("Inputs", "x dt B C rates D bias weight order")
Inputs.__doc__ = """Arrays of one call; strides of dt, B and C are in `Layout`.

x (b, L, I)   dt (b, L, 4, R), raw steps (b, L, 4, I) if R = 0   B, C (b, L, 4, N)   D, bias (4, I)
rates (4, blocks, N, 16): A log2(e)   weight (4, blocks, R, 16)   order (4, L + 2 TILE): the pixel of each step"""
Layout = namedtuple("Layout", "L blocks N given_N R dt B C")
Layout.__doc__ = """N: states rounded up to a multiple of 16, the added ones with rate, B and C 0. given_N: before that.
dt, B, C: strides of (image, pixel, direction)."""


kernel = njit(nogil=True, error_model="numpy")
inlined = njit(nogil=True, error_model="numpy", forceinline=True)  # where a call for each pair would cost too much


class SealedFiles(IndexDataCacheFile):
    """The files of numba's cache. Numba itself unpickles damaged files, which may raise any error or run code."""

    @contextlib.contextmanager
    def _open_for_write(self, filepath):
        contents = io.BytesIO()
        yield contents
        with super()._open_for_write(filepath) as file:
            file.write(seal(contents.getvalue()))

    def _load_index(self):
        return super()._load_index() if read_sealed(Path(self._index_path)) else {}

    def _load_data(self, name):
        return super()._load_data(name) if read_sealed(Path(self._data_path(name))) else None


def task(function):
    """A kernel that threads run on their own; its code is kept in numba's cache, where there is a place for one."""
    compiled = kernel(function)
    try:
        compiled.enable_caching()
        cache = compiled._cache
        stamp = cache._impl.locator.get_source_stamp()
        cache._cache_file = SealedFiles(cache.cache_path, cache._impl.filename_base, stamp)
    except RuntimeError as error:
        log.info("the compiled CPU scan can't be kept for the next run: %s", error)
    return compiled


place_of = kernel(of_state)


@kernel
def scratch(size):
    """`size` zeros that start at a cache line."""
    array = np.zeros(size + 16, np.float32)
    start = -(array.ctypes.data // 4) % 16
    return array[start : start + size]


@kernel
def gather(array, strides, image, k, rows, width, tile, tile_width):
    """tile[t, :width] = array[image, rows[t], k, :width]"""
    start = image * strides[0] + k * strides[2]
    whole = width - width % LANES
    for t in range(rows.size):
        row = start + rows[t] * strides[1]
        for j in range(0, whole, LANES):
            store(tile, t * tile_width + j, load(array, row + j))
        for j in range(whole, width):
            tile[t * tile_width + j] = array[row + j]


@kernel
def gather_ahead(array, strides, image, k, rows, width):
    start = image * strides[0] + k * strides[2]
    for t in range(rows.size):
        for j in range(0, width, 16):
            prefetch(array, start + rows[t] * strides[1] + j)


@kernel
def accumulate(array, index, value, again):
    """Store, or from the second time on add."""
    store(array, index, value + load(array, index) if again else value)


@kernel
def project_steps(dt, weight, first, R, width, raw, count):
    """raw[t] = sum over j of dt[t, j] weight[first + j], four steps at a time"""
    for t in range(0, count, 4):
        sum0 = sum1 = sum2 = sum3 = splat(np.float32(0))
        for j in range(R):
            w = load(weight, (first + j) * LANES)
            sum0 = fma(w, broadcast(dt, t * width + j), sum0)
            sum1 = fma(w, broadcast(dt, (t + 1) * width + j), sum1)
            sum2 = fma(w, broadcast(dt, (t + 2) * width + j), sum2)
            sum3 = fma(w, broadcast(dt, (t + 3) * width + j), sum3)
        store(raw, t * LANES, sum0)
        store(raw, (t + 1) * LANES, sum1)
        store(raw, (t + 2) * LANES, sum2)
        store(raw, (t + 3) * LANES, sum3)


@kernel
def project_steps_weight_gradient(grad_raw, dt, R, width, grad_weight, first, count):
    """grad_weight[first + j] += sum over t of dt[t, j] grad_raw[t], four columns at a time"""
    for j in range(0, R, 4):
        o = (first + j) * LANES
        sum0, sum1 = load(grad_weight, o), load(grad_weight, o + LANES)
        sum2, sum3 = load(grad_weight, o + 2 * LANES), load(grad_weight, o + 3 * LANES)
        for t in range(count):
            g = load(grad_raw, t * LANES)
            sum0 = fma(g, broadcast(dt, t * width + j), sum0)
            sum1 = fma(g, broadcast(dt, t * width + j + 1), sum1)
            sum2 = fma(g, broadcast(dt, t * width + j + 2), sum2)
            sum3 = fma(g, broadcast(dt, t * width + j + 3), sum3)
        store(grad_weight, o, sum0)
        store(grad_weight, o + LANES, sum1)
        store(grad_weight, o + 2 * LANES, sum2)
        store(grad_weight, o + 3 * LANES, sum3)


@kernel
def project_steps_gradient(grad_raw, weight_rows, first, width, grad_dt, count):
    """grad_dt[t] += sum over the 16 channels c of grad_raw[t, c] weight_rows[first + c]; the lanes are columns of dt"""
    for t in range(0, count, 4):
        for j in range(0, width, LANES):
            o = t * width + j
            sum0, sum1 = load(grad_dt, o), load(grad_dt, o + width)
            sum2, sum3 = load(grad_dt, o + 2 * width), load(grad_dt, o + 3 * width)
            for c in range(LANES):
                w = load(weight_rows, (first + c) * width + j)
                sum0 = fma(w, broadcast(grad_raw, t * LANES + c), sum0)
                sum1 = fma(w, broadcast(grad_raw, (t + 1) * LANES + c), sum1)
                sum2 = fma(w, broadcast(grad_raw, (t + 2) * LANES + c), sum2)
                sum3 = fma(w, broadcast(grad_raw, (t + 3) * LANES + c), sum3)
            store(grad_dt, o, sum0)
            store(grad_dt, o + width, sum1)
            store(grad_dt, o + 2 * width, sum2)
            store(grad_dt, o + 3 * width, sum3)


@kernel
def largest(steps, count):
    """Of each channel's steps in a tile, as a pair."""
    most = load(steps, 0)
    for t in range(1, count):
        most = larger(most, load(steps, t * LANES))
    return both(most)


@kernel
def scan_tile(count, N, rates, states, steps, drive, B, C, out):
    """out[t] += <C[t], h[t]> along h[t] = exp(step[t] A) h[t-1] + drive[t] B[t]; `states` go from before to after it.

    rates, states (N, 16)   steps, drive, out (TILE, 16)   B, C (TILE, N)"""
    most = largest(steps, count)
    for n in range(0, N, 2):
        rate = load_pair(rates, n * LANES)
        if all_in_range(most, rate):
            scan_pair(exp2_in_range, n, count, N, rate, states, steps, drive, B, C, out)
        else:
            scan_pair(exp2_of_product, n, count, N, rate, states, steps, drive, B, C, out)


@inlined
def scan_pair(exp2, n, count, N, rate, states, steps, drive, B, C, out):
    """`scan_tile` for the states n and n + 1."""
    h = load_pair(states, n * LANES)
    for t in range(count):
        decay = exp2(both(load(steps, t * LANES)), rate)
        h = fma(decay, h, both(load(drive, t * LANES)) * broadcast_pair(B, t * N + n))
        store(out, t * LANES, add_products(h, broadcast_pair(C, t * N + n), load(out, t * LANES)))
    store(states, n * LANES, h)


@task
def forward_task(image, half, first, last, inputs, layout, y, saved):
    """y of one image, two of the four directions and the blocks [first, last); the states at the tiles' starts into
    `saved` unless it is empty.

    y (b, halves, L, I)   saved (b, 4, tiles, blocks, N, 16)"""
    x, dt, B, C, rates, D, bias, weight, order = inputs
    L, blocks, N, given_N, R, dt_strides, B_strides, C_strides = layout
    I, tiles, width = blocks * LANES, (L + TILE - 1) // TILE, (R + 15) // 16 * 16
    tile_B, tile_C, tile_dt = scratch(TILE * N), scratch(TILE * N), scratch(TILE * width)
    steps, drive, out = scratch(TILE * LANES), scratch(TILE * LANES), scratch(TILE * LANES)
    states = scratch(blocks * N * LANES)
    for k in range(2 * half, 2 * half + 2):
        states[:] = 0
        for tile in range(tiles):
            count = min(TILE, L - tile * TILE)
            step = k * (L + 2 * TILE) + tile * TILE
            rows, next_rows = order[step : step + count], order[step + TILE : step + TILE + count]
            gather(B, B_strides, image, k, rows, given_N, tile_B, N)
            gather(C, C_strides, image, k, rows, given_N, tile_C, N)
            gather(dt, dt_strides, image, k, rows, R, tile_dt, width)
            gather_ahead(B, B_strides, image, k, next_rows, given_N)
            gather_ahead(C, C_strides, image, k, next_rows, given_N)
            gather_ahead(dt, dt_strides, image, k, next_rows, R)
            for block in range(first, last):
                here, out_here = image * L * I + block * LANES, (2 * image + half) * L * I + block * LANES
                if R > 0:
                    project_steps(tile_dt, weight, (k * blocks + block) * R, R, width, steps, count)
                else:
                    start = image * dt_strides[0] + k * dt_strides[2] + block * LANES
                    for t in range(count):
                        store(steps, t * LANES, load(dt, start + rows[t] * dt_strides[1]))
                shift = both(load(bias, k * I + block * LANES))
                for t in range(0, count, 2):
                    store(steps, t * LANES, softplus(load_pair(steps, t * LANES) + shift))
                ahead, ahead_rows = LANES, rows
                if block + 1 == last:
                    ahead, ahead_rows = (first - block) * LANES, next_rows
                skip = load(D, k * I + block * LANES)
                for t in range(count):
                    prefetch(x, here + ahead + ahead_rows[t] * I)
                    prefetch(y, out_here + ahead + ahead_rows[t] * I)
                    u = load(x, here + rows[t] * I)
                    store(drive, t * LANES, load(steps, t * LANES) * u)
                    store(out, t * LANES, skip * u)
                state = states[block * N * LANES : (block + 1) * N * LANES]
                if saved.size > 0:
                    start = (((image * 4 + k) * tiles + tile) * blocks + block) * N * LANES
                    for n in range(N):
                        store(saved, start + n * LANES, load(state, n * LANES))
                scan_tile(count, N, rates[(k * blocks + block) * N * LANES :], state, steps, drive, tile_B, tile_C, out)
                for t in range(count):
                    accumulate(y, out_here + rows[t] * I, load(out, t * LANES), k > 2 * half)


Tile = namedtuple("Tile", "steps drive B C grad_y grad_B grad_C B_grad rate_grad decays decayed")
Tile.__doc__ = """The arrays of a tile in the backward; see `scan_tile_backward`."""


@kernel
def scan_tile_backward(count, N, rates, states, tile, grad_states, grad_rates):
    """Forward through a tile as in `scan_tile`, then backward. With g[t] the gradient of h[t], these are added up:

    grad_rates += step[t] w[t]   with w[t] = g[t] exp(step[t] A) h[t-1], the gradient of step[t] A
    grad_B[t] += g[t] drive[t]   grad_C[t] += h[t] grad_y[t], both with the sum over channels still to be taken
    B_grad[t] += <B[t], g[t]>   rate_grad[t] += <rates, w[t]>

    states (N, 16) are those before the tile; grad_states (N, 16) comes as the gradient of those after it and goes as
    that of those before it; grad_B, grad_C (N / 2, TILE, 2, 16); decays and decayed (TILE, 2, 16) take exp(step A) and
    that times h."""
    steps, drive, B, C, grad_y, grad_B, grad_C, B_grad, rate_grad, decays, decayed = tile
    for n in range(0, N, 2):
        rate = load_pair(rates, n * LANES)
        h = load_pair(states, n * LANES)
        for t in range(count):
            decay = exp2_of_product(both(load(steps, t * LANES)), rate)
            carried = decay * h
            store(decays, 2 * t * LANES, decay)
            store(decayed, 2 * t * LANES, carried)
            h = fma(both(load(drive, t * LANES)), broadcast_pair(B, t * N + n), carried)
            o = (n // 2 * TILE + t) * 2 * LANES
            store(grad_C, o, fma(both(load(grad_y, t * LANES)), h, load_pair(grad_C, o)))
        g = load_pair(grad_states, n * LANES)
        decay = both(splat(np.float32(1)))  # the last state's gradient has passed its decay already
        grad_rate = both(splat(np.float32(0)))
        for t in range(count - 1, -1, -1):
            g = fma(decay, g, both(load(grad_y, t * LANES)) * broadcast_pair(C, t * N + n))
            decay = load_pair(decays, 2 * t * LANES)
            o = (n // 2 * TILE + t) * 2 * LANES
            store(grad_B, o, fma(g, both(load(drive, t * LANES)), load_pair(grad_B, o)))
            store(B_grad, t * LANES, add_products(g, broadcast_pair(B, t * N + n), load(B_grad, t * LANES)))
            w = g * load_pair(decayed, 2 * t * LANES)
            store(rate_grad, t * LANES, add_products(w, rate, load(rate_grad, t * LANES)))
            grad_rate = fma(w, both(load(steps, t * LANES)), grad_rate)
        store(grad_states, n * LANES, decay * g)
        store(grad_rates, n * LANES, load_pair(grad_rates, n * LANES) + grad_rate)


@task
def backward_task(image, half, inputs, layout, weight_rows, grad_y, saved, grads):
    """The gradients of one image from two of the four directions.

    weight_rows (4, I, width), width = R rounded up to a multiple of 16; saved as in `forward_task`. Into grads:
    x (b, halves, L, I)   dt (b, L, 4, width), raw steps (b, L, 4, I) if R = 0   B, C (b, L, 4, N)
    rates (b, 4, blocks, N, 16), of A itself   D, bias (b, 4, I)   weight (b, 4, blocks, width, 16)"""
    x, dt, B, C, rates, D, bias, weight, order = inputs
    L, blocks, N, given_N, R, dt_strides, B_strides, C_strides = layout
    grad_x, grad_dt, grad_B, grad_C, grad_rates, grad_D, grad_bias, grad_weight = grads
    I, tiles, width = blocks * LANES, (L + TILE - 1) // TILE, (R + 15) // 16 * 16
    tile_B, tile_C, tile_dt = scratch(TILE * N), scratch(TILE * N), scratch(TILE * width)
    steps, slopes = scratch(TILE * LANES), scratch(TILE * LANES)
    drive, u, gy = scratch(TILE * LANES), scratch(TILE * LANES), scratch(TILE * LANES)
    B_grad, rate_grad, grad_raw = scratch(TILE * LANES), scratch(TILE * LANES), scratch(TILE * LANES)
    decays, decayed = scratch(TILE * 2 * LANES), scratch(TILE * 2 * LANES)
    tile_grad_B, tile_grad_C = scratch(N * TILE * LANES), scratch(N * TILE * LANES)
    tile_grad_dt = scratch(TILE * width)
    arrays = Tile(steps, drive, tile_B, tile_C, gy, tile_grad_B, tile_grad_C, B_grad, rate_grad, decays, decayed)
    grad_states = scratch(blocks * N * LANES)
    zero, ln2 = splat(np.float32(0)), splat(np.float32(LN2))
    for k in range(2 * half, 2 * half + 2):
        grad_states[:] = 0
        channels = (image * 4 + k) * I  # where this direction's parameters start
        after = channels + I
        grad_rates[channels * N : after * N] = 0
        grad_D[channels:after] = 0
        grad_bias[channels:after] = 0
        grad_weight[channels * width : after * width] = 0
        for tile in range(tiles - 1, -1, -1):
            count = min(TILE, L - tile * TILE)
            step = k * (L + 2 * TILE) + tile * TILE
            before = k * (L + 2 * TILE) + max(tile - 1, 0) * TILE
            rows, next_rows = order[step : step + count], order[before : before + count]
            gather(B, B_strides, image, k, rows, given_N, tile_B, N)
            gather(C, C_strides, image, k, rows, given_N, tile_C, N)
            gather(dt, dt_strides, image, k, rows, R, tile_dt, width)
            gather_ahead(B, B_strides, image, k, next_rows, given_N)
            gather_ahead(C, C_strides, image, k, next_rows, given_N)
            gather_ahead(dt, dt_strides, image, k, next_rows, R)
            tile_grad_B[:] = 0
            tile_grad_C[:] = 0
            tile_grad_dt[:] = 0
            for block in range(blocks):
                here, out_here = image * L * I + block * LANES, (2 * image + half) * L * I + block * LANES
                mine = k * blocks + block
                if R > 0:
                    project_steps(tile_dt, weight, mine * R, R, width, steps, count)
                else:
                    start = image * dt_strides[0] + k * dt_strides[2] + block * LANES
                    for t in range(count):
                        store(steps, t * LANES, load(dt, start + rows[t] * dt_strides[1]))
                shift = both(load(bias, mine * LANES))
                for t in range(0, count, 2):
                    raw = load_pair(steps, t * LANES) + shift
                    store(steps, t * LANES, softplus(raw))
                    store(slopes, t * LANES, sigmoid(raw))
                ahead, ahead_rows = LANES, rows
                if block + 1 == blocks:
                    ahead, ahead_rows = -block * LANES, next_rows
                for t in range(count):
                    prefetch(x, here + ahead + ahead_rows[t] * I)
                    prefetch(grad_y, here + ahead + ahead_rows[t] * I)
                    prefetch(grad_x, out_here + ahead + ahead_rows[t] * I)
                    u_t = load(x, here + rows[t] * I)
                    store(u, t * LANES, u_t)
                    store(drive, t * LANES, load(steps, t * LANES) * u_t)
                    store(gy, t * LANES, load(grad_y, here + rows[t] * I))
                    store(B_grad, t * LANES, zero)
                    store(rate_grad, t * LANES, zero)
                kept = saved[(((image * 4 + k) * tiles + tile) * blocks + block) * N * LANES :]
                of_states, of_rates = grad_states[block * N * LANES :], grad_rates[(channels + block * LANES) * N :]
                scan_tile_backward(count, N, rates[mine * N * LANES :], kept, arrays, of_states, of_rates)
                skip = load(D, mine * LANES)
                sum_D = sum_bias = zero
                for t in range(count):
                    u_t, gy_t, driven = load(u, t * LANES), load(gy, t * LANES), load(B_grad, t * LANES)
                    g = fma(u_t, driven, ln2 * load(rate_grad, t * LANES)) * load(slopes, t * LANES)
                    store(grad_raw, t * LANES, g)
                    sum_bias = sum_bias + g
                    sum_D = fma(gy_t, u_t, sum_D)
                    total = fma(load(steps, t * LANES), driven, skip * gy_t)
                    accumulate(grad_x, out_here + rows[t] * I, total, k > 2 * half)
                o = channels + block * LANES
                store(grad_D, o, load(grad_D, o) + sum_D)
                store(grad_bias, o, load(grad_bias, o) + sum_bias)
                if R > 0:
                    first_row = (image * 4 * blocks + mine) * width
                    project_steps_weight_gradient(grad_raw, tile_dt, R, width, grad_weight, first_row, count)
                    project_steps_gradient(grad_raw, weight_rows, mine * LANES, width, tile_grad_dt, count)
                else:
                    for t in range(count):
                        o = ((image * L + rows[t]) * 4 + k) * I + block * LANES
                        store(grad_dt, o, load(grad_raw, t * LANES))
            for t in range(count):
                row = (image * L + rows[t]) * 4 + k
                for n in range(0, N, LANES):
                    place = place_of(n) + 2 * t * LANES
                    store(grad_B, row * N + n, lane_sums(tile_grad_B, place))
                    store(grad_C, row * N + n, lane_sums(tile_grad_C, place))
                for j in range(0, width, LANES):
                    store(grad_dt, row * width + j, load(tile_grad_dt, t * width + j))
