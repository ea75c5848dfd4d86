"""`from_pretrained`, `save_pretrained` and `push_to_hub` of the networks, by huggingface_hub where that is installed.

A folder holds config.json, what the network is built with; model.safetensors, its weights; README.md, a model card.
"""

from pathlib import Path
from typing import Any

OF_THE_MACHINE = ("scan_backend", "use_checkpoint")  # on which a network was trained: not stored
CARD = """---
{{ card_data }}
---

A network for the segmentation of images, made with the package vmunet. Its class is one of `vmunet.VMUNet`,
`vmunet.VMUNetV2` and `vmunet.UltraLightVMUNet`, with which config.json goes:

    network = vmunet.VMUNet.from_pretrained(FOLDER_OR_ID)
    probabilities = network.predict(images)  # (B, channels, H, W) float32, prepared as in training

Not said yet: the data it was trained on, how images are prepared, how well it does and where it fails.
"""

try:
    from huggingface_hub import PyTorchModelHubMixin
except ModuleNotFoundError:
    NEEDED = "found no huggingface_hub, expected it and safetensors: pip install huggingface_hub safetensors"

    class HubMixin:
        """Says what these methods need."""

        def __init_subclass__(cls, **card: Any) -> None:
            super().__init_subclass__()

        @classmethod
        def from_pretrained(cls, *_arguments: Any, **_options: Any) -> Any:
            raise ImportError(f"from_pretrained: {NEEDED}")

        def save_pretrained(self, *_arguments: Any, **_options: Any) -> Any:
            raise ImportError(f"save_pretrained: {NEEDED}")

        def push_to_hub(self, *_arguments: Any, **_options: Any) -> Any:
            raise ImportError(f"push_to_hub: {NEEDED}")
else:

    class HubMixin(PyTorchModelHubMixin):  # type: ignore[no-redef]
        """huggingface_hub's methods, but that weights must fit to the last tensor, and that the machine is left out."""

        @classmethod
        def _from_pretrained(cls, **options: Any) -> Any:
            return super()._from_pretrained(**options | {"strict": True})

        def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **options: Any) -> str | None:
            values = self._hub_mixin_config if config is None else config
            assert isinstance(values, dict)  # of the arguments of __init__
            values = {name: value for name, value in values.items() if name not in OF_THE_MACHINE}
            return super().save_pretrained(save_directory, config=values, **options)
