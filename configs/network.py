"""From a config to a network that the loops can call."""

import copy
import logging
import platform
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from configs.base import DEPTHS, BaseConfig
from configs.check import check_network, flag
from models.baselines import Baseline
from models.compile_ahead import compile_ahead as compile_kernels
from models.cost import measure_cost
from models.cpu_settings import tune_cpu
from models.cross_scan import backends, cuda_scan
from models.cuda_graphs import GraphedModel
from models.family import NETWORKS, build_network
from models.network import SegmentationNetwork
from models.vmunet.pretrained import HOW_TO_GET_VMAMBA, load_pretrained
from utils import distributed
from utils.machine.device import DTYPES, warn_of_slow_bf16
from utils.repository import here_or_beside_the_code
from utils.runs.run import Note, log_fact
from utils.runs.shipped import SHIPPED, find_checkpoint

log = logging.getLogger("vmunet")

WITHOUT = "train without with --load-ckpt-path none"
FROM_VMAMBA = f"{HOW_TO_GET_VMAMBA} and name it with --load-ckpt-path, or {WITHOUT}"
OF_BLOCKS = ("use_checkpoint", "skip_at_quarter")
OF_SHAPES = ("depths", "depths_decoder", "dims", "d_state", "drop_path_rate")
ADVICE = {"vmunet": FROM_VMAMBA, "vmunetv2": FROM_VMAMBA, "ultralight": f"{WITHOUT}, as published"}


def build_model(config: Any) -> SegmentationNetwork:
    """The network of a config, with random weights.

    Raises ValueError for options that the network lacks, and if images of `image_size` don't go through it."""
    check_options(config)
    model = build_network(vars(config))
    if isinstance(model, Baseline):  # only a forward pass can tell
        _describe_cost(model, config)
    return model


def count_cost(model: SegmentationNetwork, config: Any) -> Future[str]:
    """A sentence with the network's parameters and cost. A thread counts: that takes PyTorch's compiler, whose import
    takes a second or more, in which data can be read."""
    pool = ThreadPoolExecutor(1, "cost")
    counting = pool.submit(_describe_cost, copy.deepcopy(model), config)
    pool.shutdown(wait=False)
    return counting


def _describe_cost(model, config):
    try:
        return f"{config.network}: {measure_cost(model, config.image_size, config.image_size)}"
    except RuntimeError as error:
        size = f"{config.image_size} x {config.image_size}"
        raise ValueError(f"--network {config.network}: images of {size} don't go through it: {error}") from error


def check_options(config: Any) -> None:
    """Raises ValueError for options that the network lacks. Those of the layers' shapes a baseline leaves unread."""
    check_network(config.network)
    network, baseline = f"--network {config.network}", config.network not in NETWORKS
    own = () if baseline else NETWORKS[config.network].options
    for option in OF_BLOCKS if baseline else OF_BLOCKS + OF_SHAPES:
        if option not in own and getattr(config, option) != default_of(config, option):
            have = [name for name, member in NETWORKS.items() if option in member.options]
            raise ValueError(f"{network}: found {flag(option)}, which is an option of {' and '.join(have)} only")
    if baseline and config.test_only is None and config.load_ckpt_path not in ("none", "imagenet"):
        raise ValueError(
            f"{network}: found --load-ckpt-path {config.load_ckpt_path}, expected none (random weights) or imagenet "
            "(those of the library's encoder)"
        )


def default_of(config: Any, option: str) -> Any:
    return DEPTHS.get(config.network, DEPTHS["vmunet"]) if option == "depths" else getattr(BaseConfig, option)


def load_initial_weights(model: SegmentationNetwork, config: Any) -> None:
    """Weights to start from, unless `load_ckpt_path` is "none": VMamba's ImageNet weights into encoder and decoder, as
    published, or those of another network of the kind, for fine-tuning. ImageNet weights of a baseline go into its
    encoder."""
    if config.load_ckpt_path.lower() == "none":
        log.info("training from random weights (load_ckpt_path is none)")
    elif isinstance(model, Baseline):
        model.load_imagenet_encoder()
        log.info("training from the ImageNet weights of the encoder %s, the rest is random", model.encoder)
    else:
        advice = ADVICE[config.network]
        load_pretrained(model, find_checkpoint(initial_weights(config.load_ckpt_path), advice), advice)


def initial_weights(named: str) -> str:
    """What `load_ckpt_path` names: a relative path in the working directory or, where that has none, in the repository,
    as the default is meant."""
    return named if named in SHIPPED else str(here_or_beside_the_code(named))


def compile_ahead(config: Any, device: torch.device, trains: bool = True, network: nn.Module | None = None) -> None:
    """Begins to compile the CUDA kernels of a config's network, which takes a while on a machine that has not done so
    before. Without `trains` none of gradients. The `network` need not be built yet."""
    if device.type != "cuda" or config.network not in NETWORKS or config.scan_backend not in ("auto", cuda_scan.NAME):
        return
    if network is None:
        with torch.device("meta"):
            network = build_network(vars(config))
    compile_kernels(network, DTYPES[config.precision], device, trains)


def prepare(
    model: nn.Module, config: Any, device: torch.device, note: Note = log_fact, trains: bool = True
) -> nn.Module:
    """The model as the loops call it: on its device, compiled if asked, one of several processes under torchrun.

    The scan backend is chosen here, so that one that can't be used says so before the first epoch. `note`, such as
    Run.note, is told the device and the backend. Without `trains` no kernels of gradients are compiled ahead."""
    dtype = DTYPES[config.precision]
    compile_ahead(config, device, trains, model)
    try:
        has_scans = config.network in NETWORKS
        backend = backends.resolve(config.scan_backend, device.type, dtype) if has_scans else "none"
    except RuntimeError as error:
        raise ValueError(f"--scan-backend {config.scan_backend}: {error}") from error
    processor = platform.processor() or platform.machine()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    processes = f"{torch.get_num_threads()} CPU threads, {distributed.world_size()} processes"
    note("device", f"device {device} ({hardware}), {processes}, {config.precision}, scan backend {backend}")
    note("scan", backend, level=None)  # the line of the device names it
    if device.type == "cpu":
        tune_cpu()
        if config.precision == "bf16":
            warn_of_slow_bf16()
    model = model.to(device)
    if config.compile:
        model.compile()
    distributed.copy_from_main(model.state_dict().values())
    if config.cuda_graphs and backend in backends.FUSED and config.accumulation_steps == 1 and not config.compile:
        model = GraphedModel(model)
    return model
