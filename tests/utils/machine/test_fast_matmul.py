import pytest
import torch

from utils.machine import fast_matmul


def test_matmuls_stay_exact_whatever_the_processor_does_with_the_switch():
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        switched = fast_matmul.use_fast_matmuls()
        assert fast_matmul.largest_error() < 1e-6
        assert switched == (torch.backends.mkldnn.matmul.fp32_precision == "bf16")
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_matmuls_that_round_are_refused(monkeypatch):
    """As on processors with bfloat16 matrix units."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    linear = torch.nn.functional.linear
    monkeypatch.setattr(fast_matmul.F, "linear", lambda x, w: linear(x.bfloat16().float(), w.bfloat16().float()))
    assert not fast_matmul.use_fast_matmuls()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("supported", [False, True])
def test_slow_bf16_is_warned_of(supported, monkeypatch, caplog):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    fast_matmul.warn_of_slow_bf16()
    assert ("fp32 is faster here" in caplog.text) != supported
