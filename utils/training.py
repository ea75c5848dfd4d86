"""What both training scripts do with a config and a model, in the order they do it."""

import dataclasses
import logging

import torch
from torch.nn.parallel import DistributedDataParallel

from models.cross_scan import backends
from models.vmunet import VMUNet
from utils import distributed
from utils.checkpoint import restore, save_checkpoint, save_latest, training_state, unwrap
from utils.flops import measure_cost
from utils.optim import build_optimizer, build_scheduler, step_scheduler
from utils.plots import add_panels, save_curves, summary_writer
from utils.pretrained import load_vmamba
from utils.products import use_fast_products

log = logging.getLogger("vmunet")


def build_model(config):
    """The network of a config, with random weights. Its parameters and cost go to the log."""
    model = VMUNet(
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
    log.info("%s: %s", config.network, measure_cost(model, config.image_size, config.image_size))
    return model


def load_initial_weights(model, config):
    """VMamba's ImageNet weights into encoder and decoder, as published, unless `load_ckpt_path` is "none"."""
    if config.load_ckpt_path.lower() == "none":
        log.info("training from random weights (load_ckpt_path is none)")
    else:
        load_vmamba(model, config.load_ckpt_path)


def prepare(model, config, device):
    """The model as the loops call it: on its device, compiled if asked, one of several processes under torchrun.

    The scan backend is chosen here, so that one that can't be used says so before the first epoch."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    backends.resolve(config.scan_backend, device.type, dtype)
    if device.type == "cpu" and config.precision == "fp32":
        use_fast_products()
    model = model.to(device)
    if config.compile:
        model.compile()
    if distributed.world_size() > 1:
        model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    return model


class Progress:
    """Where a training run stands: optimizer and scheduler, finished epochs, steps and the best epoch so far; and its
    records: metrics.csv, TensorBoard, curves, checkpoints.

    `rows` are the tables of optimizers and schedulers; `state` is a checkpoint to go on from, or None."""

    def __init__(self, run, config, model, execution, rows, state=None):
        self.run, self.config, self.model, self.scaler = run, config, model, execution.scaler
        optimizers, schedulers = rows
        self.optimizer = build_optimizer(model, config, optimizers, config.opt_args)
        self.scheduler = build_scheduler(self.optimizer, config, schedulers, config.sch_args)
        self.epoch, self.step, self.best = 0, 0, {"value": float("inf"), "epoch": 0}
        if state is not None:
            self.epoch, self.step, self.best = restore(state, model, self.optimizer, self.scheduler, self.scaler)
        self.writer = summary_writer(run.folder / "tensorboard", self.step)

    def epochs(self):
        """The epochs that remain, counted from 1."""
        yield from range(self.epoch + 1, self.config.epochs + 1)
        self.writer.close()
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
        """Steps the schedule and records an epoch: TensorBoard, a row of metrics.csv, best.pth if `loss` is the lowest
        so far, latest.pth. `samples` are shown as prediction panels.

        In this order, so that a run killed in between repeats the epoch and ends with the same files."""
        self.epoch = row["epoch"]
        step_scheduler(self.scheduler, loss)
        log.info(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        for name, value in row.items():
            self.writer.add_scalar(f"epoch/{name}", value, self.step)
        if samples:
            add_panels(self.writer, "predictions", samples, self.step, class_names)
        self.writer.flush()
        self.run.add_metrics(row)
        config = dataclasses.asdict(self.config)
        weights = {"model": unwrap(self.model).state_dict(), "epoch": self.epoch, "config": config}
        if loss < self.best["value"]:
            self.best = {"value": loss, "epoch": self.epoch}
            self._save("best.pth", weights)
        if self.epoch % self.config.save_interval == 0:
            self._save(f"epoch_{self.epoch}.pth", weights)
        state = training_state(
            self.model, self.optimizer, self.scheduler, self.scaler, self.epoch, self.step, self.best, config
        )
        if distributed.is_main():
            save_latest(self.run.checkpoints, state)
            if self.epoch % self.config.val_interval == 0 or self.epoch == self.config.epochs:
                save_curves(self.run.metrics, self.run.folder / "curves.png")
        distributed.barrier()

    def _save(self, name, weights):
        if distributed.is_main():
            save_checkpoint(self.run.checkpoints / name, weights)
