"""The cross-scan as an ONNX function of standard operators, for `export.py --format onnx`.

torch.onnx.export writes one call of it for each block; the functions are added to the model afterwards. All four
directions advance together, one step of the operator Scan for each pixel: its arrays are small enough for the
processor's caches, which makes up for the number of steps.
"""

import onnx
import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset
from torch import Tensor

from . import DOMAIN, NAME, VERSION

OPSET = 18  # of the standard operators; the exporter's own, which needs no conversion
ANY = FLOAT[...]
_domain = Opset(DOMAIN, VERSION)


@script(_domain, default_opset=op)
def Backwards(sequence):
    """Reverse a sequence along its first axis."""
    return op.Slice(sequence, [-1], [-9223372036854775807], [0], [-1])  # starts, ends, axes, steps


@script(_domain, default_opset=op)
def Sequences(maps):
    """(b, H, W, 4, c) -> (L, b, 4, c): each direction in the order in which it visits the pixels."""
    shape = op.Shape(maps)
    ends = op.Concat([-1], op.Gather(shape, [0]), [1], op.Gather(shape, [4]), axis=0)  # (L, b, 1, c)
    rows, columns, rows_back, columns_back = op.Split(maps, axis=3, num_outputs=4)
    first = op.Reshape(op.Transpose(rows, perm=[1, 2, 0, 3, 4]), ends)
    second = op.Reshape(op.Transpose(columns, perm=[2, 1, 0, 3, 4]), ends)
    third = Backwards(op.Reshape(op.Transpose(rows_back, perm=[1, 2, 0, 3, 4]), ends))
    fourth = Backwards(op.Reshape(op.Transpose(columns_back, perm=[2, 1, 0, 3, 4]), ends))
    return op.Concat(first, second, third, fourth, axis=2)


@script(_domain, default_opset=op)
def SoftPlus(x):
    """Compute Softplus by operators that are many times faster in ONNX Runtime."""
    return op.Relu(x) + op.Log(op.Exp(op.Neg(op.Abs(x))) + 1.0)


@script(_domain, default_opset=op)
def Recurrence(delta, drive, B, C, A):
    """delta, drive (L, b, 4, 1, I), B (L, b, 4, N, 1), C (L, b, 4, 1, N), A (4, N, I) -> y (L, b, 4, 1, I)."""

    # OpenVINO needs the types, and A as a state: its loops take nothing from outside.
    @graph()
    def step(h_before: ANY, rates: ANY, delta_t: ANY, drive_t: ANY, B_t: ANY, C_t: ANY):
        h_after = op.Exp(delta_t * rates) * h_before + B_t * drive_t
        y_t = op.MatMul(C_t, h_after)
        return h_after, op.Identity(rates), y_t

    nothing = op.Gather(delta, op.Constant(value_int=0), axis=0) * A * 0.0
    last, same, y = op.Scan(nothing, A, delta, drive, B, C, body=step, num_scan_inputs=4)
    return y


@script(_domain, default_opset=op)
def CrossScan(x, dt, B, C, A, D, dt_bias, dt_weight):
    """The cross-scan; shapes as in `reference.scan`."""
    rates = op.Transpose(A, perm=[0, 2, 1])  # (4, N, I)
    # (L, b, 4, 1, R) @ (4, R, I)
    raw = op.MatMul(op.Unsqueeze(Sequences(dt), [3]), op.Transpose(dt_weight, perm=[0, 2, 1]))
    delta = SoftPlus(raw + op.Unsqueeze(dt_bias, [1]))
    pixels = op.Unsqueeze(x, [3])
    u = op.Unsqueeze(Sequences(op.Concat(pixels, pixels, pixels, pixels, axis=3)), [3])
    y = Recurrence(delta, delta * u, op.Unsqueeze(Sequences(B), [4]), op.Unsqueeze(Sequences(C), [3]), rates)
    rows, columns, rows_back, columns_back = op.Split(op.Squeeze(y, [3]), axis=2, num_outputs=4)  # (L, b, 1, I)
    b, H, W, I = op.Split(op.Shape(x), axis=0, num_outputs=4)
    by_rows = op.Reshape(rows + Backwards(rows_back), op.Concat(H, W, b, I, axis=0))
    by_columns = op.Reshape(columns + Backwards(columns_back), op.Concat(W, H, b, I, axis=0))
    skip = x * op.ReduceSum(D, [0], keepdims=0)
    return skip + op.Transpose(by_rows, perm=[2, 0, 1, 3]) + op.Transpose(by_columns, perm=[2, 1, 0, 3])


def scan(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, dt_weight: Tensor | None = None
) -> Tensor:
    """Return a placeholder that torch.onnx.export turns into a call of `CrossScan`; nothing is computed."""
    assert dt_weight is not None  # as SS2D has it
    inputs = [x, dt, B, C, A, D, dt_bias, dt_weight]
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{NAME}", inputs, dtype=x.dtype, shape=x.shape, version=VERSION)


def functions() -> list[onnx.FunctionProto]:
    """Return the ONNX functions that a model with the scan needs."""
    return [f.to_function_proto() for f in (Backwards, Sequences, SoftPlus, Recurrence, CrossScan)]
