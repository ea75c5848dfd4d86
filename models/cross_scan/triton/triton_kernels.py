"""The cross-scan as Triton kernels, forward and backward, with the norm and the gate after it, for `triton_scan`.

How they are laid out
- A program owns one image, one direction, BD channels and a chunk of the steps; a thread owns one channel. It works on
  tiles of T = 16 steps, all of whose rows sit in the thread's registers, one state at a time, so neither the recurrence
  nor the sum over the states needs another thread. `row` and `put` pick rows of a tile; they compile to nothing. The
  tiles get this layout because I is not specialised: Triton must not know that several channels could be read at once.
- A direction is only an order in which pixels are visited: no copies, no flips.
- The steps delta are computed inside the tile (low-rank matmul, bias, softplus) and never reach memory.
- Each direction writes its own plane, in pixel order; one more kernel adds the four, normalises and gates. Nothing is
  added atomically: results are the same to the bit in every run.
- With too little work for the GPU, the steps are cut into chunks: the end states of all chunks from zero, a small scan
  over the chunks, then the real run. The recurrence is linear: a chunk multiplies what it is handed by
  exp(A sum(delta)).
- The forward saves the state before every tile. The backward walks the tiles from the end and recomputes the others.
- Sums over channels (dB, dC and the gradient of the low-rank steps) go through the matrix unit, and one partial result
  for each block of channels to memory; those are added afterwards. The products that dB and dC add up are rounded to
  bfloat16 where the results will be: they pass through shared memory, which half the bytes leave free.
- Few warps run at a time, so nothing hides the memory's latency unless data is asked for early: see `touch`.

The state is float32 whatever the inputs. exp is taken as exp2 of a rate that was multiplied by log2(e) beforehand.
"""

import triton
import triton.language as tl

# ----------------------------------------------------------------------------------------------- pieces of the kernels


@triton.jit
def row(tile, t, i):
    """Row i of a tile (T, BD). Adding integer zeros changes nothing: the compiler is left with a register's name."""
    bits = tl.where(t[:, None] == i, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def put(tile, t, i, values):
    """The tile with row i replaced."""
    return tl.where(t[:, None] == i, values[None, :], tile)


@triton.jit
def compose(a0, b0, a1, b1):
    """The map h -> a0 h + b0, then h -> a1 h + b1."""
    return a0 * a1, a1 * b0 + b1


@triton.jit
def recurrence(decay, inputs, h, t):
    """h[t] = decay[t] h[t-1] + inputs[t] for the rows of a tile, and h before the first. Stays inside the thread."""
    _, states = tl.associative_scan((decay, inputs + tl.where(t[:, None] == 0, decay * h[None, :], 0.0)), 0, compose)
    return states


@triton.jit
def pixels(k, step, t, H, W):
    """The pixels that direction k visits at `step` + t. Steps outside the map give any number; mask them."""
    L = H * W
    by_columns = k % 2 == 1
    run = tl.where(by_columns, H, 1 << 30)  # steps until the next column; by rows there is no such end
    near = tl.where(by_columns, W, 1)
    far = tl.where(by_columns, 1, 0)
    backwards = k >= 2
    first = tl.where(backwards, L - 1 - step, step)
    inside = first % run + tl.where(backwards, -t, t)
    # floor(inside / run), exact because `inside` is less than T outside of 0..run
    beyond = tl.floor((inside.to(tl.float32) + 0.5) * (1.0 / run)).to(tl.int32)
    return (inside - beyond * run) * near + (first // run + beyond) * far


@triton.jit
def touch(tile, inside, ROWS: tl.constexpr, BD: tl.constexpr):
    """One word of every 32 bytes of a packed tile (ROWS, 16 steps): brings it into the L1 cache.

    A tile is first read by one warp at a time, a row before each state: without this every state waits for the memory.
    What comes back has to be used later (times zero), or the compiler leaves the reading out."""
    SECTORS: tl.constexpr = 2 * ROWS
    at = tl.arange(0, triton.next_power_of_2((SECTORS + BD - 1) // BD))[:, None] * BD + tl.arange(0, BD)[None, :]
    return tl.load(tile + at * 8, mask=at < tl.where(inside, SECTORS, 0), other=0.0)


@triton.jit
def softplus(z):
    """log(1 + exp(z)) to 2e-7 of its value: max(z, 0) + e P(e), e = exp(-|z|), P a minimax polynomial of log1p(e) / e.

    The hardware's logarithm is not good enough: near 1 only its absolute error is small."""
    e = tl.exp2(-1.4426950408889634 * tl.abs(z))
    p = 0.0052326880395412445 * e - 0.029505213722586632
    p = p * e + 0.07822591066360474
    p = p * e - 0.13663242757320404
    p = p * e + 0.19106005132198334
    p = p * e - 0.2484298199415207
    p = p * e + 0.3331909775733948
    p = p * e - 0.4999949336051941
    p = p * e + 0.9999999403953552
    return tl.maximum(z, 0.0) + e * p


@triton.jit
def sigmoid(z):
    e = tl.exp2(-1.4426950408889634 * tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def raw_steps(
    dt, packed, weights, bias, rows, d, t, mask, I,
    N: tl.constexpr, R: tl.constexpr, UNROLL: tl.constexpr, T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """bias + dt_weight r for the tile, (T, BD); with R = 0 the steps are read instead."""
    z = tl.zeros((T, BD), tl.float32) + bias[None, :]
    if R == 0:
        z += tl.load(dt + rows[:, None] * (4 * I) + d[None, :], mask=mask, other=0.0).to(tl.float32)
    for j in range(0, R, UNROLL if UNROLL > 0 else 1):
        for u in tl.static_range(UNROLL):
            r = tl.load(packed + (2 * N + j + u) * T + t)
            w = tl.load(weights + (N + j + u) * I + d, mask=d < I, other=0.0)
            z += r[:, None] * w[None, :]
    return z


# ------------------------------------------------------------------------------------------------------------ kernels


@triton.jit
def pack_kernel(
    dt, B, C, A, dt_weight, packed, weights,
    dt_row, dt_k, B_row, B_k, C_row, C_k, H, W, I, tiles, blocks,
    N: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, T: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Brings what is shared by all channels into the order and precision in which the scans read it.

    packed (b, 4, tiles, 2 N + R, T): B, C and the low-rank steps in scan order, zero beyond the last step
    weights (4, N + R, I): A log2(e) and dt_weight, channels last"""
    n = tl.arange(0, N)
    j = tl.arange(0, RP)
    item = tl.arange(0, BL)
    if tl.program_id(0) < blocks:
        bk = tl.program_id(1)
        k = bk % 4
        step = tl.program_id(0) * BL + item
        L = H * W
        valid = step < L
        l = tl.where(k >= 2, L - 1 - step, step)  # noqa: E741
        l = tl.where(k % 2 == 1, (l % H) * W + l // H, l)  # noqa: E741
        pixel = (bk // 4).to(tl.int64) * L + l
        to = packed + (bk.to(tl.int64) * tiles + step // T) * ((2 * N + R) * T) + step % T
        inside = step < tiles * T
        mask = valid[:, None] & (n < N)[None, :]
        b = tl.load(B + pixel[:, None] * B_row + k * B_k + n[None, :], mask=mask, other=0.0)
        tl.store(to[:, None] + n[None, :] * T, b.to(tl.float32), mask=inside[:, None])
        c = tl.load(C + pixel[:, None] * C_row + k * C_k + n[None, :], mask=mask, other=0.0)
        tl.store(to[:, None] + (N + n)[None, :] * T, c.to(tl.float32), mask=inside[:, None])
        if R > 0:
            r = tl.load(
                dt + pixel[:, None] * dt_row + k * dt_k + j[None, :], mask=valid[:, None] & (j < R)[None, :], other=0.0
            )
            tl.store(to[:, None] + (2 * N + j)[None, :] * T, r.to(tl.float32), mask=inside[:, None] & (j < R)[None, :])
    elif tl.program_id(1) < 4:
        k = tl.program_id(1)
        d = (tl.program_id(0) - blocks) * BL + item
        mask = (d < I)[:, None]
        a = tl.load(A + (k * I + d)[:, None] * N + n[None, :], mask=mask, other=0.0)
        to = weights + k * (N + R) * I + d
        tl.store(to[:, None] + n[None, :] * I, a * 1.4426950408889634, mask=mask)
        if R > 0:
            mask = mask & (j < R)[None, :]
            w = tl.load(dt_weight + (k * I + d)[:, None] * R + j[None, :], mask=mask, other=0.0)
            tl.store(to[:, None] + (N + j)[None, :] * I, w.to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["I"])
def scan_kernel(
    x, dt, packed, weights, D, bias, starts, planes,
    H, W, I, chunk, tiles, slots, stride,
    SAVE: tl.constexpr, N: tl.constexpr, R: tl.constexpr, UNROLL: tl.constexpr, T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The recurrence over one chunk, and its output.

    starts (b, 4, slots, N, I): chunks after the first find their state in slot chunk * stride; with SAVE, the state
    before each tile is left there
    planes (4, b, L, I): y of each direction, in pixel order"""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    bk = tl.program_id(2).to(tl.int64)
    b, k = bk // 4, (bk % 4).to(tl.int32)
    t, n = tl.arange(0, T), tl.arange(0, N)
    L = H * W
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, L)
    x += b * L * I
    dt += (b * L * 4 + k) * I
    planes += (k * (tl.num_programs(2) // 4) + b) * L * I
    packed += bk * tiles * (2 * N + R) * T
    weights += k * (N + R) * I
    starts += bk * slots * N * I
    of_state = n[:, None] * I + d[None, :]
    mine = d < I
    rate = tl.load(weights + of_state, mask=mine[None, :], other=0.0)
    skip = tl.load(D + k * I + d, mask=mine, other=0.0)
    offset = tl.load(bias + k * I + d, mask=mine, other=0.0)
    GROUP: tl.constexpr = N if N < 16 else 16  # states in straight code: h and rate stay in registers; the rest loops
    handed = d[None, :] < tl.where(first > 0, I, 0)
    h = tl.load(starts + tl.program_id(1) * stride * N * I + of_state, mask=handed, other=0.0)

    rows = pixels(k, first, t, H, W)
    mask = (first + t < last)[:, None] & mine[None, :]
    u_next = tl.load(x + rows[:, None] * I + d[None, :], mask=mask, other=0.0)
    touched = touch(packed + (first // T) * ((2 * N + R) * T), first < last, 2 * N + R, BD)
    for step in range(first, last, T):
        skip += 0.0 * tl.sum(touched, 0)
        if SAVE:
            tl.store(starts + (step // T) * N * I + of_state, h, mask=mine[None, :])
        tile = packed + (step // T) * ((2 * N + R) * T)
        touched = touch(tile + (2 * N + R) * T, step + T < last, 2 * N + R, BD)
        z = raw_steps(dt, tile, weights, offset, rows, d, t, mask, I, N, R, UNROLL, T, BD)
        delta = tl.where(mask, softplus(z), 0.0)
        u = u_next.to(tl.float32)
        to = rows[:, None] * I + d[None, :]
        written = mask
        # the next tile's x is on its way while this one is computed
        rows = pixels(k, step + T, t, H, W)
        mask = (step + T + t < last)[:, None] & mine[None, :]
        u_next = tl.load(x + rows[:, None] * I + d[None, :], mask=mask, other=0.0)

        drive = delta * u
        y = skip[None, :] * u
        for start in range(0, N, GROUP):
            for member in tl.static_range(GROUP):
                i = start + member
                b_i = tl.load(tile + i * T + t)
                c_i = tl.load(tile + (N + i) * T + t)
                decay = tl.exp2(delta * row(rate, n, i)[None, :])
                states = recurrence(decay, drive * b_i[:, None], row(h, n, i), t)
                h = put(h, n, i, row(states, t, T - 1))
                y += states * c_i[:, None]
        tl.store(planes + to, y.to(planes.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=["I"])
def ends_kernel(
    v, dt, packed, weights, bias, ends, totals,
    H, W, I, chunk, tiles, slots, stride,
    BACKWARDS: tl.constexpr, N: tl.constexpr, R: tl.constexpr, UNROLL: tl.constexpr, T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """What each chunk hands on when nothing was handed to it, and the sum of its steps.

    Forward: the end state, v = x, kept in slot (chunk + 1) * stride of ends (b, 4, slots, N, I). BACKWARDS: the
    gradient of the state before the chunk, v = gradient of y, kept in slot chunk - 1. totals (b, 4, chunks, I)."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    bk = tl.program_id(2).to(tl.int64)
    b, k = bk // 4, (bk % 4).to(tl.int32)
    t, n = tl.arange(0, T), tl.arange(0, N)
    L = H * W
    number = tl.program_id(1) + (1 if BACKWARDS else 0)
    first = number * chunk
    last = tl.minimum(first + chunk, L)
    v += b * L * I
    dt += (b * L * 4 + k) * I
    packed += bk * tiles * (2 * N + R) * T
    weights += k * (N + R) * I
    slot = number - 1 if BACKWARDS else (number + 1) * stride
    ends += (bk * slots + slot) * N * I
    of_state = n[:, None] * I + d[None, :]
    mine = d < I
    rate = tl.load(weights + of_state, mask=mine[None, :], other=0.0)
    offset = tl.load(bias + k * I + d, mask=mine, other=0.0)
    GROUP: tl.constexpr = N if N < 16 else 16
    h = tl.zeros((N, BD), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    order = T - 1 - t if BACKWARDS else t
    touched = touch(packed + ((last - 1 if BACKWARDS else first) // T) * ((2 * N + R) * T), True, 2 * N + R, BD)
    for number_of_tile in range(0, tl.cdiv(last - first, T)):
        step = first + number_of_tile * T
        if BACKWARDS:
            step = first + (tl.cdiv(last - first, T) - 1 - number_of_tile) * T
        tile = packed + (step // T) * ((2 * N + R) * T)
        total += 0.0 * tl.sum(touched, 0)
        after = step - T if BACKWARDS else step + T
        touched = touch(packed + (after // T) * ((2 * N + R) * T), (after >= first) & (after < last), 2 * N + R, BD)
        rows = pixels(k, step, order, H, W)
        mask = (step + order < last)[:, None] & mine[None, :]
        u = tl.load(v + rows[:, None] * I + d[None, :], mask=mask, other=0.0).to(tl.float32)
        z = raw_steps(dt, tile, weights, offset, rows, d, order, mask, I, N, R, UNROLL, T, BD)
        delta = tl.where(mask, softplus(z), 0.0)
        total += tl.sum(delta, 0)
        for start in range(0, N, GROUP):
            for member in tl.static_range(GROUP):
                i = start + member
                decay = tl.exp2(delta * row(rate, n, i)[None, :])
                if BACKWARDS:
                    inputs = decay * u * tl.load(tile + (N + i) * T + order)[:, None]
                else:
                    inputs = delta * u * tl.load(tile + i * T + order)[:, None]
                h = put(h, n, i, row(recurrence(decay, inputs, row(h, n, i), t), t, T - 1))
    tl.store(ends + of_state, h, mask=mine[None, :])
    tl.store(totals + (bk * tl.cdiv(L, chunk) + number) * I + d, total, mask=mine)


@triton.jit(do_not_specialize=["I"])
def hand_on_kernel(
    weights, totals, ends, I, chunks, slots, stride,
    BACKWARDS: tl.constexpr, NR: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The scan over the chunks, in place: `ends` as left by `ends_kernel`, then with what each chunk was handed."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    i = tl.program_id(1)
    bk = tl.program_id(2).to(tl.int64)
    t = tl.arange(0, T)
    mine = d < I
    rate = tl.load(weights + ((bk % 4) * NR + i) * I + d, mask=mine, other=0.0)
    totals += bk * chunks * I
    ends += (bk * slots * N + i) * I
    state = tl.zeros((BD,), tl.float32)
    for start in range(0, chunks - 1, T):
        turn = start + t
        number = chunks - 1 - turn if BACKWARDS else turn
        slot = number - 1 if BACKWARDS else (number + 1) * stride
        mask = (turn < chunks - 1)[:, None] & mine[None, :]
        to = ends + slot[:, None] * (N * I) + d[None, :]
        tile = tl.load(to, mask=mask, other=0.0)
        total = tl.load(totals + number[:, None] * I + d[None, :], mask=mask, other=0.0)
        tile = recurrence(tl.exp2(total * rate[None, :]), tile, state, t)
        state = row(tile, t, T - 1)
        tl.store(to, tile, mask=mask)


@triton.jit(do_not_specialize=["I"])
def scan_backward_kernel(
    grad, x, dt, packed, weights, D, bias, starts,
    carry, dx, ddt, blocks_out, parameters_out,
    H, W, I, chunk, tiles, slots,
    N: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, NP: tl.constexpr, UNROLL: tl.constexpr,
    T: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """The gradients over one chunk, from its last tile to its first.

    With g the gradient of a state after its own output was added, and s = exp(delta A) g what it hands back:
        dC = sum_d grad h    dB = sum_d g delta x    d(delta) = x <g, B> + <s h_before, A>    dx = delta <g, B> + D grad
    carry (b, 4, chunks, N, I): what comes from the later chunk; updated in place
    dx (4, b, L, I), ddt (b, L, 4, I; only without a low rank): in pixel order
    blocks_out (blocks of channels, b, 4, tiles T, 2 N + R): dB, dC, gradient of the low-rank steps, for the block's
    channels, in the order of the steps
    parameters_out (b, 4, chunks, N + R + 2, I), zero before: dA, d(dt_weight), dD, d(bias)"""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    bk = tl.program_id(2).to(tl.int64)
    b, k = bk // 4, (bk % 4).to(tl.int32)
    t, n, j = tl.arange(0, T), tl.arange(0, NP), tl.arange(0, RP)
    L = H * W
    batch = tl.num_programs(2) // 4
    number = tl.program_id(1)
    first = number * chunk
    last = tl.minimum(first + chunk, L)
    grad += b * L * I
    x += b * L * I
    dt += (b * L * 4 + k) * I
    ddt += (b * L * 4 + k) * I
    dx += (k * batch + b) * L * I
    blocks_out += ((tl.program_id(0).to(tl.int64) * batch + b) * 4 + k) * tiles * T * (2 * N + R)
    packed += bk * tiles * (2 * N + R) * T
    weights += k * (N + R) * I
    starts += bk * slots * N * I + d
    part = bk * tl.num_programs(1) + number
    carry += part * N * I + d
    parameters_out += part * (N + R + 2) * I + d
    mine = d < I
    skip = tl.load(D + k * I + d, mask=mine, other=0.0)
    offset = tl.load(bias + k * I + d, mask=mine, other=0.0)
    d_skip = tl.zeros((BD,), tl.float32)
    d_offset = tl.zeros((BD,), tl.float32)

    SUMMED: tl.constexpr = tl.bfloat16 if ROUND else tl.float32
    ones = tl.full((BD, NP), 1.0, SUMMED)

    tiles_of_chunk = tl.cdiv(last - first, T)
    touched = touch(packed + ((last - 1) // T) * ((2 * N + R) * T), True, 2 * N + R, BD)
    for back in range(tiles_of_chunk):
        step = first + (tiles_of_chunk - 1 - back) * T
        tile = packed + (step // T) * ((2 * N + R) * T)
        before_tile = starts + (step // T) * N * I
        rows = pixels(k, step, t, H, W)
        mask = (step + t < last)[:, None] & mine[None, :]
        here = rows[:, None] * I + d[None, :]
        skip += 0.0 * tl.sum(touched, 0)
        touched = touch(tile - (2 * N + R) * T, step > first, 2 * N + R, BD)
        u = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
        q = tl.load(grad + here, mask=mask, other=0.0).to(tl.float32)
        z = raw_steps(dt, tile, weights, offset, rows, d, t, mask, I, N, R, UNROLL, T, BD)
        delta = tl.where(mask, softplus(z), 0.0)
        drive = delta * u
        g_B = tl.zeros((T, BD), tl.float32)  # <g, B>
        w_A = tl.zeros((T, BD), tl.float32)  # <s h_before, A>, A times log2(e)
        dB = tl.zeros((T, NP), tl.float32)
        dC = tl.zeros((T, NP), tl.float32)
        # what a state needs is read while the one before it is computed
        state_next = tl.load(before_tile, mask=mine, other=0.0)
        rate_next = tl.load(weights + d, mask=mine, other=0.0)
        carry_next = tl.load(carry, mask=mine, other=0.0)
        d_rate_next = tl.load(parameters_out, mask=mine, other=0.0)
        for i in range(N):
            state, rate, g_next, d_rate = state_next, rate_next, carry_next, d_rate_next
            b_i = tl.load(tile + i * T + t)
            c_i = tl.load(tile + (N + i) * T + t)
            other = tl.minimum(i + 1, N - 1) * I
            state_next = tl.load(before_tile + other, mask=mine, other=0.0)
            rate_next = tl.load(weights + other + d, mask=mine, other=0.0)
            carry_next = tl.load(carry + other, mask=mine, other=0.0)
            d_rate_next = tl.load(parameters_out + other, mask=mine, other=0.0)
            decay = tl.exp2(delta * rate[None, :])
            # forwards: the states; `before` is the state before each step
            states = drive * b_i[:, None]
            before = states
            for s in tl.static_range(T):
                before = put(before, t, s, state)
                state = row(decay, t, s) * state + row(states, t, s)
                states = put(states, t, s, state)
            # backwards: g, and s h_before
            g = q * c_i[:, None]
            w = before
            for s in tl.static_range(T - 1, -1, -1):
                g_row = row(g, t, s) + g_next
                g_next = row(decay, t, s) * g_row
                g = put(g, t, s, g_row)
                w = put(w, t, s, g_next * row(before, t, s))
            tl.store(carry + i * I, g_next, mask=mine)
            tl.store(parameters_out + i * I, d_rate + tl.sum(w * delta, 0), mask=mine)
            g_B += g * b_i[:, None]
            w_A += w * rate[None, :]
            # sums over the channels, into column i
            column = n[None, :] == i
            dB = tl.where(column, tl.dot((g * drive).to(SUMMED), ones, input_precision=PRECISION), dB)
            dC = tl.where(column, tl.dot((q * states).to(SUMMED), ones, input_precision=PRECISION), dC)

        tl.store(dx + here, (delta * g_B + skip[None, :] * q).to(dx.dtype.element_ty), mask=mask)
        d_z = tl.where(mask, (u * g_B + w_A * 0.6931471805599453) * sigmoid(z), 0.0)
        d_skip += tl.sum(q * u, 0)
        d_offset += tl.sum(d_z, 0)
        out = blocks_out + (step + t)[:, None] * (2 * N + R)
        valid = (step + t < last)[:, None]
        tl.store(out + n[None, :], dB, mask=valid & (n < N)[None, :])
        tl.store(out + N + n[None, :], dC, mask=valid & (n < N)[None, :])
        if R == 0:
            tl.store(ddt + rows[:, None] * (4 * I) + d[None, :], d_z.to(ddt.dtype.element_ty), mask=mask)
        else:
            low_rank = mine[:, None] & (j < R)[None, :]
            w = tl.load(weights + (N + j)[None, :] * I + d[:, None], mask=low_rank, other=0.0)
            d_r = tl.dot(d_z, w, input_precision=PRECISION)
            tl.store(out + 2 * N + j[None, :], d_r, mask=valid & (j < R)[None, :])
            of_weight = parameters_out + N * I
            total_next = tl.load(of_weight, mask=mine, other=0.0)
            for i in range(R):
                total = total_next
                total_next = tl.load(of_weight + tl.minimum(i + 1, R - 1) * I, mask=mine, other=0.0)
                r = tl.load(tile + (2 * N + i) * T + t)
                tl.store(of_weight + i * I, total + tl.sum(d_z * r[:, None], 0), mask=mine)
        tl.debug_barrier()
    tl.store(parameters_out + (N + R) * I, d_skip, mask=mine)
    tl.store(parameters_out + (N + R + 1) * I, d_offset, mask=mine)


@triton.jit
def sum_planes(planes, at, size, mask):
    """Return (y0 + y2) + y1 + y3, the original's order, of the planes (4, size) at the places `at`."""
    y0 = tl.load(planes + at, mask=mask, other=0.0).to(tl.float32)
    y1 = tl.load(planes + size + at, mask=mask, other=0.0).to(tl.float32)
    y2 = tl.load(planes + 2 * size + at, mask=mask, other=0.0).to(tl.float32)
    y3 = tl.load(planes + 3 * size + at, mask=mask, other=0.0).to(tl.float32)
    return y0 + y2 + y1 + y3


@triton.jit
def sum_planes_kernel(planes, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    tl.store(out + at, sum_planes(planes, at, size, mask).to(out.dtype.element_ty), mask=mask)


@triton.jit
def sum_blocks_kernel(
    partials, dB, dC, dr, size, blocks, H, W, steps, N: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds the blocks of channels, partials (blocks, size = b 4 steps (2 N + R)), and takes the three gradients apart,
    (b, L, 4, N or R), from the order of the steps to that of the pixels. steps: L and what fills up the last tile."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    step = (at // (2 * N + R)) % steps
    mask = (at < size) & (step < H * W)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(blocks):
        total += tl.load(partials + at, mask=mask, other=0.0)
        partials += size
    bk, j = at // (2 * N + R) // steps, at % (2 * N + R)
    k = bk % 4
    l = tl.where(k >= 2, H * W - 1 - step, step)  # noqa: E741
    l = tl.where(k % 2 == 1, (l % H) * W + l // H, l)  # noqa: E741
    of = (bk // 4 * (H * W) + l) * 4 + k
    tl.store(dB + of * N + j, total.to(dB.dtype.element_ty), mask=mask & (j < N))
    tl.store(dC + of * N + j - N, total.to(dC.dtype.element_ty), mask=mask & (j >= N) & (j < 2 * N))
    if R > 0:
        tl.store(dr + of * R + j - 2 * N, total.to(dr.dtype.element_ty), mask=mask & (j >= 2 * N))


@triton.jit
def sum_parameters_kernel(
    partials, dA, dW, dD, d_bias, I, batch, chunks, N: tl.constexpr, R: tl.constexpr, BD: tl.constexpr
):
    """Adds the images and chunks of the parameters' gradients, partials (b, 4, chunks, N + R + 2, I)."""
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    j = tl.program_id(1)
    k = tl.program_id(2)
    mask = d < I
    total = tl.zeros((BD,), tl.float32)
    for part in range(batch * chunks):
        at = ((part // chunks * 4 + k) * chunks + part % chunks).to(tl.int64)
        total += tl.load(partials + (at * (N + R + 2) + j) * I + d, mask=mask, other=0.0)
    at = k * I + d
    if j < N:
        tl.store(dA + at * N + j, total, mask=mask)
    elif j < N + R:
        tl.store(dW + at * R + j - N, total, mask=mask)
    elif j == N + R:
        tl.store(dD + at, total, mask=mask)
    else:
        tl.store(d_bias + at, total, mask=mask)


@triton.jit
def gate_kernel(
    planes, z, weight, bias, y, out, size, tokens, I, z_row, eps, SAVE: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr
):
    """LayerNorm(y) * SiLU(z) of y, the sum of the planes (4, tokens, I) rounded to their dtype."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    i = tl.arange(0, BI)
    mask = (token < tokens)[:, None] & (i < I)[None, :]
    at = token[:, None] * I + i[None, :]
    rounded = sum_planes(planes, at, size, mask).to(out.dtype.element_ty)
    if SAVE:
        tl.store(y + at, rounded, mask=mask)
    v = rounded.to(tl.float32)
    centred = tl.where(mask, v - (tl.sum(v, 1) / I)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / I + eps)
    gate = tl.load(z + token[:, None] * z_row + i[None, :], mask=mask, other=0.0).to(tl.float32)
    gate *= sigmoid(gate)
    w = tl.load(weight + i, mask=i < I, other=0.0).to(tl.float32)
    c = tl.load(bias + i, mask=i < I, other=0.0).to(tl.float32)
    result = (centred * scale[:, None] * w[None, :] + c[None, :]) * gate
    tl.store(out + at, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gate_backward_kernel(
    grad, y, z, weight, bias, dy, dz, parameters_out, tokens, I, z_row, eps, BT: tl.constexpr, BI: tl.constexpr
):
    """Gradients of LayerNorm(y) * SiLU(z). parameters_out (programs, 2, I): those of weight and bias, for the program's
    tokens, which are every num_programs-th block of BT."""
    i = tl.arange(0, BI)
    mine = i < I
    w = tl.load(weight + i, mask=mine, other=0.0).to(tl.float32)[None, :]
    c = tl.load(bias + i, mask=mine, other=0.0).to(tl.float32)[None, :]
    d_w = tl.zeros((BT, BI), tl.float32)  # added up over the rows only once, at the end
    d_c = tl.zeros((BT, BI), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(tokens, BT), tl.num_programs(0)):
        token = (block * BT + tl.arange(0, BT)).to(tl.int64)
        mask = (token < tokens)[:, None] & mine[None, :]
        at = token[:, None] * I + i[None, :]
        v = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(z + token[:, None] * z_row + i[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, v - (tl.sum(v, 1) / I)[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / I + eps)[:, None]
        normal = centred * scale
        s = sigmoid(gate)
        tl.store(dz + at, (g * (normal * w + c) * s * (1 + gate * (1 - s))).to(dz.dtype.element_ty), mask=mask)
        g *= gate * s
        d_w += g * normal
        d_c += g
        g *= w
        along = tl.sum(g * normal, 1) / I
        g = scale * (g - (tl.sum(g, 1) / I)[:, None] - normal * along[:, None])
        tl.store(dy + at, g.to(dy.dtype.element_ty), mask=mask)
    to = parameters_out + tl.program_id(0) * 2 * I + i
    tl.store(to, tl.sum(d_w, 0), mask=mine)
    tl.store(to + I, tl.sum(d_c, 0), mask=mine)
