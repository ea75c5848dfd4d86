"""`from_pretrained`, `save_pretrained` and `push_to_hub` of the networks, by huggingface_hub.

A folder holds config.json (the options of the network and the preprocessing of its images), model.safetensors (its
weights) and README.md (a model card).
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download

from .weights.filling import fitted
from .weights.reading import CONFIG, read_config, read_weights

MACHINE_OPTIONS = ("scan_backend", "use_checkpoint")  # of the machine that a network was trained on: not stored
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference
# Values of a training that tell how images are prepared and what the outputs mean.
PREPARATION = (
    *("dataset", "image_size", "normalization", "antialias", "threshold", "class_names", "class_colours"),
    *("mask_values", "scaling", "scaling_range", "orientation", "volume_resize", "context", "slice_fit"),
)
IMAGE_VALUES = {  # by normalization
    "minmax": "{colour}; stretch each image over all channels to 0..255; bilinear resize to the input size",
    "imagenet": "{colour} / 255, minus ImageNet's mean, divided by its standard deviation; bilinear resize",
}
CARD = """---
{{ card_data }}
---

A network for the segmentation of images, made with the package vmunet:

    network = vmunet.{{ class_name }}.from_pretrained(FOLDER_OR_ID)
    probabilities = network.predict(images)  # (B, channels, H, W) float32, prepared as below

## How images are prepared

{{ preparation }}

{{ record }}
"""
UNKNOWN = "## Still to be written\n\nThe data that the network was trained on, its accuracy and its failures."


def describe_images(values: Mapping[str, Any]) -> str:
    """Return how images are prepared for a network that was trained with these values of a config."""
    colour = "grey (0.299 R + 0.587 G + 0.114 B)" if values["input_channels"] == 1 else "RGB"
    text = IMAGE_VALUES[values["normalization"]].format(colour=colour)
    return text + (" with antialiasing" if values.get("antialias") else "")


class HubMixin(PyTorchModelHubMixin):
    """huggingface_hub's methods, but weights must match exactly, and options of the machine are not stored."""

    preparation: Mapping[str, Any] = {}  # the values of PREPARATION, if the network's file has them

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: Any = "cpu",
        **options: Any,
    ) -> Any:
        """Return the network of a folder, or of a repository on the Hub, in eval mode. `options` replace those in
        config.json.

        Raises FileNotFoundError, and ValueError for files that `load` refuses and for those of another network."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            where: dict = dict(revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
            name, patterns = str(pretrained_model_name_or_path), [CONFIG, *WEIGHTS]
            folder = Path(snapshot_download(name, allow_patterns=patterns, force_download=force_download, **where))
        path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
        checkpoint = read_weights(path)
        config = read_config(folder / CONFIG)
        name = getattr(cls, "name", None)  # an option of baselines
        if name and config.get("network", name) != name:
            raise ValueError(f"{folder / CONFIG}: found the network {config['network']!r}, expected {name!r}")
        known = inspect.signature(cls).parameters.keys() - set(MACHINE_OPTIONS)
        values = {name: value for name, value in config.items() if name in known} | options
        network_class: Any = cls
        network = fitted(lambda: network_class(**values), checkpoint.weights, path, folder / CONFIG)
        return network.prepared_as(config).to(map_location)

    def prepared_as(self, values: Mapping[str, Any]) -> Any:
        """Return the network. It keeps the values of a config that describe the preprocessing of images."""
        self.preparation = {name: values[name] for name in PREPARATION if name in values}
        return self

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **options: Any) -> str | None:
        values = self._hub_mixin_config if config is None else config
        assert isinstance(values, dict)  # of the arguments of __init__
        values = {name: value for name, value in values.items() if name not in MACHINE_OPTIONS}
        values = {"network": getattr(self, "name", None), **self.preparation, **values}
        result = super().save_pretrained(save_directory, config=values, **options)
        weights, others = Path(save_directory, WEIGHTS[0]), Path(save_directory, CONFIG)
        weights.chmod(others.stat().st_mode)  # safetensors lets nobody else read them
        return result

    def generate_model_card(self, *arguments: Any, record: str = UNKNOWN, **options: Any) -> ModelCard:
        values = {**vars(self)["_hub_mixin_config"], **self.preparation}
        lines = [f"- {name}: {value}" for name, value in self.preparation.items() if value not in (None, (), [])]
        if str(values.get("normalization")) in IMAGE_VALUES:
            size = values.get("image_size")
            lines.insert(0, f"- {describe_images(values)} of {size} x {size} pixels")
        text = "\n".join(lines) or "Not recorded: the network was not loaded from a training checkpoint. Write it here."
        facts = dict(class_name=type(self).__name__, preparation=text, record=record)
        return super().generate_model_card(*arguments, **options, **facts)
