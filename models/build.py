"""From a config to a network that the loops can call."""

import logging
import platform
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.baselines import Baseline
from models.cost import measure_cost
from models.cross_scan import backends
from models.cuda_graphs import GraphedModel
from models.network import SegmentationNetwork
from models.vmunet import VMUNet
from models.vmunet.pretrained import load_pretrained
from utils import distributed
from utils.machine.fast_matmul import use_fast_matmuls, warn_of_slow_bf16
from utils.machine.memory import keep_freed_memory
from utils.repository import here_or_beside_the_code
from utils.runs.run import Note, log_fact
from utils.runs.shipped import SHIPPED

log = logging.getLogger("vmunet")


def build_model(config: Any, note: Note = log_fact) -> SegmentationNetwork:
    """The network of a config, with random weights. `note`, such as Run.note, is told its parameters and cost.

    Raises ValueError if images of `image_size` don't go through it."""
    model = build_vmunet(config) if config.network == "vmunet" else build_baseline(config)
    try:
        cost = measure_cost(model, config.image_size, config.image_size)
    except RuntimeError as error:
        size = f"{config.image_size} x {config.image_size}"
        raise ValueError(f"--network {config.network}: images of {size} don't go through it: {error}") from error
    note("network", f"{config.network}: {cost}")
    return model


def build_vmunet(config: Any) -> VMUNet:
    return VMUNet(
        num_classes=config.num_classes,
        input_channels=config.input_channels,
        depths=config.depths,
        depths_decoder=config.depths_decoder,
        drop_path_rate=config.drop_path_rate,
        dims=config.dims,
        d_state=config.d_state,
        scan_backend=config.scan_backend,
        use_checkpoint=config.use_checkpoint,
        skip_at_quarter=config.skip_at_quarter,
    )


def build_baseline(config: Any) -> Baseline:
    """The network of segmentation_models_pytorch that a config names; the values of VM-UNet's layers are not used.

    Raises ValueError for options that only VM-UNet has."""
    network = f"--network {config.network}"
    if config.use_checkpoint or config.skip_at_quarter:
        raise ValueError(f"{network}: found --use-checkpoint or --skip-at-quarter, which only vmunet has")
    if config.test_only is None and config.load_ckpt_path not in ("none", "imagenet"):
        raise ValueError(
            f"{network}: found --load-ckpt-path {config.load_ckpt_path}, expected none (random weights) or imagenet "
            "(those of the library's encoder)"
        )
    return Baseline(config.network, config.num_classes, config.input_channels)


def load_initial_weights(model: nn.Module, config: Any) -> None:
    """Weights to start from, unless `load_ckpt_path` is "none": VMamba's ImageNet weights into encoder and decoder, as
    published, or those of another VM-UNet, for fine-tuning. ImageNet weights of a baseline go into its encoder."""
    if config.load_ckpt_path.lower() == "none":
        log.info("training from random weights (load_ckpt_path is none)")
    elif isinstance(model, Baseline):
        model.load_imagenet_encoder()
        log.info("training from the ImageNet weights of the encoder %s, the rest is random", model.encoder)
    else:
        load_pretrained(model, initial_weights(config.load_ckpt_path))


def initial_weights(named: str) -> str:
    """What `load_ckpt_path` names: a relative path in the working directory or, where that has none, in the repository,
    as the default is meant."""
    return named if named in SHIPPED else str(here_or_beside_the_code(named))


def prepare(model: nn.Module, config: Any, device: torch.device, note: Note = log_fact) -> nn.Module:
    """The model as the loops call it: on its device, compiled if asked, one of several processes under torchrun.

    The scan backend is chosen here, so that one that can't be used says so before the first epoch. `note`, such as
    Run.note, is told the device and the backend."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    try:
        backend = backends.resolve(config.scan_backend, device.type, dtype) if isinstance(model, VMUNet) else "none"
    except RuntimeError as error:
        raise ValueError(f"--scan-backend {config.scan_backend}: {error}") from error
    processor = platform.processor() or platform.machine()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    processes = f"{torch.get_num_threads()} CPU threads, {distributed.world_size()} processes"
    note("device", f"device {device} ({hardware}), {processes}, {config.precision}, scan backend {backend}")
    note("scan", backend, level=None)  # the line of the device names it
    if device.type == "cpu":
        keep_freed_memory()
        if config.precision == "fp32":
            use_fast_matmuls()
        elif config.precision == "bf16":
            warn_of_slow_bf16()
    model = model.to(device)
    if config.compile:
        model.compile()
    if distributed.world_size() > 1:
        model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    elif config.cuda_graphs and backend in backends.FUSED and config.accumulation_steps == 1 and not config.compile:
        model = GraphedModel(model)
    return model
