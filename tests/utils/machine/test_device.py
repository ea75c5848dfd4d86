import pytest
import torch

from utils.machine import device


@pytest.mark.parametrize("supported", [False, True])
def test_slow_bf16_is_warned_of(supported, monkeypatch, caplog):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    device.warn_of_slow_bf16()
    assert ("fp32 is faster here" in caplog.text) != supported
