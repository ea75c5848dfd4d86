"""What both training scripts do with a config and a model, in the order they do it."""

import contextlib
import dataclasses
import logging
import math
import platform

import torch
from torch.nn.parallel import DistributedDataParallel

from engine import NonFiniteLossError
from models.baselines import Baseline
from models.cross_scan import backends
from models.vmunet import VMUNet
from utils import distributed
from utils.checkpoint import BackgroundSaver, restore, training_state, unwrap
from utils.flops import measure_cost
from utils.graphs import GraphedModel
from utils.memory import keep_freed_memory
from utils.optim import build_optimizer, build_scheduler, step_scheduler
from utils.plots import EventWriter, add_panels, save_curves
from utils.pretrained import load_vmamba
from utils.products import use_fast_products, warn_of_slow_bf16
from utils.stopping import Stopped, on_signals

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
            use_fast_products()
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


class Progress:
    """Where a training run stands: optimizer and scheduler, finished epochs, steps and the best epoch so far; and its
    records: metrics.csv, TensorBoard, curves, checkpoints.

    `rows` are the tables of optimizers and schedulers; `state` is a checkpoint to go on from, or None."""

    def __init__(self, run, config, model, execution, rows, state=None):
        self.run, self.config, self.model = run, config, model
        self.scaler, self.stop = execution.scaler, execution.stop
        optimizers, schedulers = rows
        self.optimizer = build_optimizer(model, config, optimizers, config.opt_args)
        self.scheduler = build_scheduler(self.optimizer, config, schedulers, config.sch_args)
        self.epoch, self.step, self.best = 0, 0, {"value": float("inf"), "epoch": 0}
        self.losses = []  # of the batches done of the epoch after `epoch`
        if state is not None:
            self.epoch, self.step, self.best = restore(state, model, self.optimizer, self.scheduler, self.scaler)
            self.losses = state["losses"]
        self.writer = EventWriter(run.folder / "tensorboard", self.step)
        self.saver = BackgroundSaver()

    @contextlib.contextmanager
    def saved_when_stopped(self):
        """In this block SIGTERM and Ctrl-C let the batch finish; then everything is saved, and Stopped goes on."""
        with on_signals(self.stop.remember), contextlib.closing(self.writer), self.saver:
            try:
                yield
            except Stopped as stopped:
                self._save_latest()
                self.saver.finish()
                stopped.saved = True
                raise

    def epochs(self):
        """The epochs that remain, counted from 1."""
        yield from range(self.epoch + 1, self.config.epochs + 1)
        log.info("best epoch: %d, with %.4f", self.best["epoch"], self.best["value"])

    @property
    def lr(self):
        return self.optimizer.param_groups[0]["lr"]

    def on_step(self, loss, images_per_second):
        self.step += 1
        if self.step % self.config.print_interval == 0:
            self.writer.add_scalar("step/loss", loss, self.step)
            self.writer.add_scalar("step/lr", self.lr, self.step)
            self.writer.add_scalar("step/images_per_second", images_per_second, self.step)

    def finish_epoch(self, row, loss, samples=(), class_names=None):
        """Steps the schedule and records an epoch: TensorBoard, a row of metrics.csv, curves, best.pth if `loss` is the
        lowest so far, latest.pth. `samples` are shown as prediction panels.

        In this order, so that a run killed in between repeats the epoch, or two if the thread that writes checkpoints
        is behind, and ends with the same files.

        Raises NonFiniteLossError instead of saving weights that nothing can go on from."""
        self._check_finite(row["epoch"], loss)
        self.saver.finish()  # the checkpoints of the last epoch, or why there are none
        self.epoch, self.losses = row["epoch"], []
        step_scheduler(self.scheduler, loss)
        log.info(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        for name, value in row.items():
            self.writer.add_scalar(f"epoch/{name}", value, self.step)
        if samples:
            add_panels(self.writer, "predictions", samples, self.step, class_names)
        self.writer.flush()
        self.run.add_metrics(row)
        if distributed.is_main() and (self.epoch % self.config.val_interval == 0 or self.epoch == self.config.epochs):
            save_curves(self.run.metrics, self.run.folder / "curves.png")
        config = dataclasses.asdict(self.config)
        weights = {"model": unwrap(self.model).state_dict(), "epoch": self.epoch, "config": config}
        if loss < self.best["value"]:
            self.best = {"value": loss, "epoch": self.epoch}
            self._save("best.pth", weights)
        if self.epoch % self.config.save_interval == 0:
            self._save(f"epoch_{self.epoch}.pth", weights)
        self._save_latest()
        self.stop.check()

    def _check_finite(self, epoch, loss):
        spoilt = [name for name, p in unwrap(self.model).named_parameters() if not p.isfinite().all()]
        if spoilt or not math.isfinite(loss):
            found = f"the loss that selects the best epoch is {loss}" if not spoilt else f"{spoilt[0]} is not finite"
            raise NonFiniteLossError(f"{found} after epoch {epoch}, which is not saved")

    def _save_latest(self):
        state = training_state(
            self.model, self.optimizer, self.scheduler, self.scaler, self.epoch, self.step, self.best,
            dataclasses.asdict(self.config), self.losses,
        )  # fmt: skip
        if distributed.is_main():
            self.saver.save_latest(self.run.checkpoints, state)
        distributed.barrier()

    def _save(self, name, weights):
        if distributed.is_main():
            self.saver.save(self.run.checkpoints / name, weights)
