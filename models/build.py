"""From a config to a network that the loops can call."""

import logging
import platform

import torch
from torch.nn.parallel import DistributedDataParallel

from models.baselines import Baseline
from models.cost import measure_cost
from models.cross_scan import backends
from models.cuda_graphs import GraphedModel
from models.vmunet import VMUNet
from models.vmunet.pretrained import load_vmamba
from utils import distributed
from utils.machine.fast_matmul import use_fast_matmuls, warn_of_slow_bf16
from utils.machine.memory import keep_freed_memory

log = logging.getLogger("vmunet")


def build_model(config):
    """The network of a config, with random weights. Its parameters and cost go to the log.

    Raises ValueError if images of `image_size` don't go through it."""
    model = build_vmunet(config) if config.network == "vmunet" else build_baseline(config)
    try:
        cost = measure_cost(model, config.image_size, config.image_size)
    except RuntimeError as error:
        size = f"{config.image_size} x {config.image_size}"
        raise ValueError(f"--network {config.network}: images of {size} don't go through it: {error}") from error
    log.info("%s: %s", config.network, cost)
    return model


def build_vmunet(config):
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


def build_baseline(config):
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


def load_initial_weights(model, config):
    """VMamba's ImageNet weights into encoder and decoder, as published, unless `load_ckpt_path` is "none". Those of a
    baseline go into its encoder."""
    if config.load_ckpt_path.lower() == "none":
        log.info("training from random weights (load_ckpt_path is none)")
    elif isinstance(model, Baseline):
        model.load_imagenet_encoder()
        log.info("training from the ImageNet weights of the encoder %s, the rest is random", model.encoder)
    else:
        load_vmamba(model, config.load_ckpt_path)


def prepare(model, config, device):
    """The model as the loops call it: on its device, compiled if asked, one of several processes under torchrun.

    The scan backend is chosen here, so that one that can't be used says so before the first epoch."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    try:
        backend = backends.resolve(config.scan_backend, device.type, dtype) if isinstance(model, VMUNet) else "none"
    except RuntimeError as error:
        raise ValueError(f"--scan-backend {config.scan_backend}: {error}") from error
    processor = platform.processor() or platform.machine()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    log.info(
        "device %s (%s), %d CPU threads, %d processes, %s, scan backend %s",
        device, hardware, torch.get_num_threads(), distributed.world_size(), config.precision, backend,
    )  # fmt: skip
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
