import pytest
import torch

from utils.machine import fast_matmul as products


def test_products_stay_exact_whatever_the_processor_does_with_the_switch():
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        switched = products.use_fast_matmuls()
        assert products.largest_error() < 1e-6
        assert switched == (torch.backends.mkldnn.matmul.fp32_precision == "bf16")
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_products_that_round_are_refused(monkeypatch):
    """As on processors with bfloat16 matrix units."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    linear = torch.nn.functional.linear
    monkeypatch.setattr(products.F, "linear", lambda x, w: linear(x.bfloat16().float(), w.bfloat16().float()))
    assert not products.use_fast_matmuls()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("supported", [False, True])
def test_slow_bf16_is_said(supported, monkeypatch, caplog):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    products.warn_of_slow_bf16()
    assert ("fp32 is faster here" in caplog.text) != supported
