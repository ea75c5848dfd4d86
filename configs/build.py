"""From a config to a network that the loops can call."""

import copy
import logging
import platform
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from datasets.loaders import EpochBatchSampler
from models.baselines import Baseline
from models.cost import measure_cost
from models.cpu_settings import tune_cpu
from models.cross_scan import backends
from models.family import NETWORKS, build_network
from models.network import SegmentationNetwork
from models.vmunet.pretrained import load_pretrained
from models.weights.filling import check_fit, inner_weights
from models.weights.reading import Checkpoint
from utils import distributed
from utils.files import reading
from utils.machine.device import DTYPES, warn_of_slow_bf16
from utils.runs.named_weights import find_initial_weights

log = logging.getLogger("vmunet")

OTHER_STARTS = (
    "--load-ckpt-path none trains from random weights, vmamba-small and vmamba-tiny download those of VMamba for "
    "vmunet and vmunetv2"
)


def build_model(config: Any) -> SegmentationNetwork:
    """Return the network of a config, with random weights. Raises ValueError if images of `image_size` don't fit it."""
    model = build_network(vars(config))
    if isinstance(model, Baseline):
        describe_cost(model, config)  # only a forward pass can tell
        if distributed.rank() > 0:  # each process draws dropout for its own images
            torch.manual_seed(config.seed + distributed.rank())
    return model


def describe_cost(model: SegmentationNetwork, config: Any) -> str:
    """Return a sentence with the network's parameters and cost."""
    try:
        return f"{config.network}: {measure_cost(model, config.image_size, config.image_size)}"
    except RuntimeError as error:
        size = f"{config.image_size} x {config.image_size}"
        raise ValueError(f"--network {config.network}: images of {size} don't fit it: {error}") from error


def count_cost(model: SegmentationNetwork, config: Any) -> Future[str]:
    """Begin `describe_cost` in a thread: it imports PyTorch's compiler, which takes a second or more."""
    pool = ThreadPoolExecutor(1, "cost")
    counting = pool.submit(describe_cost, copy.deepcopy(model), config)
    pool.shutdown(wait=False)
    return counting


def load_initial_weights(model: SegmentationNetwork, config: Any) -> None:
    """Load the weights to start from, unless `load_ckpt_path` is "none": VMamba's ImageNet weights into encoder and
    decoder, as published, or those of another network of the kind, for fine-tuning; into a baseline's encoder its
    ImageNet weights."""
    if config.load_ckpt_path.lower() == "none":
        log.info("training from random weights (load_ckpt_path is none)")
    elif isinstance(model, Baseline):
        model.load_imagenet_encoder()
        log.info("training from the ImageNet weights of the encoder %s, the rest is random", model.encoder)
    else:
        try:
            load_pretrained(model, find_initial_weights(config.load_ckpt_path))
        except (OSError, ValueError) as error:
            kind = ValueError if isinstance(error, ValueError) else type(error)
            raise kind(f"--load-ckpt-path {config.load_ckpt_path}: {error}; {OTHER_STARTS}") from error


def check_size(config: Any, checkpoint: Checkpoint) -> None:
    """Raise ValueError if the checkpoint's weights don't fit the config's network, before memory is allocated for it:
    the config of a damaged file may ask for any amount."""
    if config.network in NETWORKS:
        with reading(checkpoint.path), torch.device("meta"):
            network = build_network(vars(config))
        check_fit(inner_weights(network), checkpoint.weights, checkpoint.path)


def check_smallest_batch(model: SegmentationNetwork, config: Any, sampler: EpochBatchSampler) -> None:
    """Raise ValueError if some step gives a process a single image, from which a BatchNorm layer gets one value per
    channel and so no variance."""
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if not has_batch_norm or 1 not in sampler.shares_of_epoch(config.batch_size):
        return
    shapes = copy.deepcopy(model).float().to("meta").train()  # computes nothing
    try:
        shapes(torch.zeros(1, config.input_channels, *[config.image_size] * 2, device="meta"))
    except ValueError as error:
        others = range(config.batch_size + 1, sampler.length + 1)
        fits = next((size for size in others if 1 not in sampler.shares_of_epoch(size)), None)
        found = f"found a batch of one image, of {sampler.length} to train on, and BatchNorm in {config.network}"
        expected = "at least 2 images in each batch" + (f", as with --batch-size {fits}" if fits else "")
        raise ValueError(f"--batch-size {config.batch_size}: {found}, expected {expected}") from error


def compile_ahead(config: Any, device: torch.device, trains: bool = True, network: nn.Module | None = None) -> None:
    """Begin to compile the CUDA kernels of a config's network, which takes a while the first time on a machine. Without
    `trains` none for gradients. The `network` need not be built yet."""
    if device.type != "cuda" or config.network not in NETWORKS or config.scan_backend not in ("auto", "cuda"):
        return
    from models.compile_ahead import compile_ahead as compile_kernels  # needed on GPUs only

    if network is None:
        with torch.device("meta"):
            network = build_network(vars(config))
    compile_kernels(network, DTYPES[config.precision], device, trains)


def choose_backend(config: Any, device: torch.device) -> str:
    """Return the scan backend of a config on a device; "none" for networks without scans.

    Raises ValueError for one that can't be used here."""
    if config.network not in NETWORKS:
        return "none"
    try:
        return backends.resolve(config.scan_backend, device.type, DTYPES[config.precision])
    except RuntimeError as error:
        raise ValueError(f"--scan-backend {config.scan_backend}: {error}") from error


def describe_device(config: Any, device: torch.device) -> str:
    """Return a sentence with what the network runs on."""
    processor = platform.processor() or platform.machine()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    processes = f"{torch.get_num_threads()} CPU threads, {distributed.world_size()} processes"
    backend = choose_backend(config, device)
    return f"device {device} ({hardware}), {processes}, {config.precision}, scan backend {backend}"


def prepare(model: nn.Module, config: Any, device: torch.device, trains: bool = True) -> nn.Module:
    """Return the model as the loops call it: on its device, with the main process's weights, compiled if asked, as CUDA
    graphs where they are faster. Without `trains` no kernels of gradients are compiled ahead."""
    compile_ahead(config, device, trains, model)
    backend = choose_backend(config, device)
    if device.type == "cpu":
        tune_cpu()
        if config.precision == "bf16":
            warn_of_slow_bf16()
    model = model.to(device)
    if config.compile:
        model.compile()
    distributed.broadcast(model.state_dict().values())
    graphs = config.cuda_graphs and not config.debug and not config.compile and config.accumulation_steps == 1
    if not graphs or backend == "none" or not backends.is_fused(backend):
        return model
    from models.cuda_graphs import GraphedModel  # needed on GPUs only

    return GraphedModel(model)
