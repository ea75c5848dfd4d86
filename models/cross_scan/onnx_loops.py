"""The loops of `exportable.py` as ONNX functions around the operator Scan.

torch.onnx.export writes a call of each by its name; the functions, which are made of standard operators, are added to
the model afterwards."""

import onnx
import torch
from onnxscript import graph, opset18, script
from onnxscript.values import Opset

from .exportable import Loops

DOMAIN = "vmunet"
OPSET = 18  # of the standard operators; the exporter's own, which needs no conversion
_domain = Opset(DOMAIN, 1)
op = opset18


@script(_domain, default_opset=op)
def LastStates(h, dt, drive, B, A):
    @graph()
    def step(h_before, dt_t, drive_t, B_t):
        first = op.Constant(value_ints=[-2])
        last = op.Constant(value_ints=[-1])
        added = op.Unsqueeze(B_t, last) * op.Unsqueeze(drive_t, first)
        h_after = op.Exp(op.Unsqueeze(dt_t, first) * A) * h_before + added
        return h_after

    ends = op.Scan(h, dt, drive, B, body=step, num_scan_inputs=3)
    return ends


@script(_domain, default_opset=op)
def Outputs(h, dt, drive, B, C, A):
    @graph()
    def step(h_before, dt_t, drive_t, B_t, C_t):
        first = op.Constant(value_ints=[-2])
        last = op.Constant(value_ints=[-1])
        added = op.Unsqueeze(B_t, last) * op.Unsqueeze(drive_t, first)
        h_after = op.Exp(op.Unsqueeze(dt_t, first) * A) * h_before + added
        y_t = op.Squeeze(op.MatMul(op.Unsqueeze(C_t, first), h_after), first)
        return h_after, y_t

    ends, ys = op.Scan(h, dt, drive, B, C, body=step, num_scan_inputs=4)
    return ys


@script(_domain, default_opset=op)
def FirstStates(h, decay, added):
    @graph()
    def step(h_before, decay_t, added_t):
        h_after = decay_t * h_before + added_t
        first = op.Identity(h_before)
        return h_after, first

    end, states = op.Scan(h, decay, added, body=step, num_scan_inputs=2)
    return states


def _call(function, inputs, like):
    name = f"{DOMAIN}::{function.name}"
    return torch.onnx.ops.symbolic(name, inputs, dtype=like.dtype, shape=like.shape, version=1)


ONNX_LOOPS = Loops(
    lambda *inputs: _call(LastStates, inputs, like=inputs[0]),
    lambda *inputs: _call(Outputs, inputs, like=inputs[1]),
    lambda *inputs: _call(FirstStates, inputs, like=inputs[1]),
)


def functions() -> list[onnx.FunctionProto]:
    """The ONNX functions that a model calling the loops must carry."""
    return [function.to_function_proto() for function in (LastStates, Outputs, FirstStates)]
