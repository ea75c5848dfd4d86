"""`from_pretrained`, `save_pretrained` and `push_to_hub` of the networks, by huggingface_hub.

A folder holds config.json, what the network is built with; model.safetensors, its weights; README.md, a model card.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin

MACHINE_OPTIONS = ("scan_backend", "use_checkpoint")  # of the machine that a network was trained on: not stored
CARD = """---
{{ card_data }}
---

A network for the segmentation of images, made with the package vmunet. Its class is one of `vmunet.VMUNet`,
`vmunet.VMUNetV2` and `vmunet.UltraLightVMUNet`, with which config.json goes:

    network = vmunet.VMUNet.from_pretrained(FOLDER_OR_ID)
    probabilities = network.predict(images)  # (B, channels, H, W) float32, prepared as in training

Still to be written: the data it was trained on, how images are prepared, how well it does and where it fails.
"""


class HubMixin(PyTorchModelHubMixin):
    """huggingface_hub's methods, but weights must match exactly, and options of the machine are not stored."""

    @classmethod
    def _from_pretrained(cls, **options: Any) -> Any:
        return super()._from_pretrained(**options | {"strict": True})

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **options: Any) -> str | None:
        values = self._hub_mixin_config if config is None else config
        assert isinstance(values, dict)  # of the arguments of __init__
        values = {name: value for name, value in values.items() if name not in MACHINE_OPTIONS}
        return super().save_pretrained(save_directory, config=values, **options)
