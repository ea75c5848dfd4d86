"""What both training scripts share: device, process group, run folder, network, weights, and resuming."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch

from configs.build import (
    build_model,
    check_size,
    check_smallest_batch,
    choose_backend,
    compile_ahead,
    count_cost,
    describe_device,
    load_initial_weights,
    prepare,
)
from configs.optim import rows_of
from configs.resolve import collapse_warning, log_checkpoint, remarks
from datasets.classes import ISIC_FOLDERS, SYNAPSE_FOLDERS
from datasets.loaders import Loader, data_fingerprint, data_folder
from engine import Compute
from utils import distributed
from utils.files import write_rows
from utils.machine.device import choose_device
from utils.optimizers import check_optimization, optimization_values, warm_up_warning
from utils.runs.epoch_records import show_panels
from utils.runs.named_weights import load_checkpoint_weights, read_checkpoint
from utils.runs.run_folder import started_run
from utils.runs.tracking import tracking
from utils.runs.training_state import TrainingState

log = logging.getLogger("vmunet")

NO_SELECTION = "no epoch is selected: the weights of the last one are kept and tested (--select last)"


class Session:
    """A run of a training script, as a context manager: in it the processes are connected and the run folder is open.

    config  complete and checked (configs/resolve.py)"""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.compute = Compute(self.device, config.precision)
        self.state: TrainingState | None = None
        self.stack = ExitStack()

    def __enter__(self) -> "Session":
        config = self.config
        compile_ahead(config, self.device, trains=config.test_only is None)
        check_optimization(config, *rows_of(config))
        with self.stack:
            self.stack.enter_context(distributed.process_group(self.device))
            self.run = self.stack.enter_context(started_run(config))
            self.tracker = self.stack.enter_context(tracking(config, self.run))
            for line in remarks(config) if config.resume is None else ():
                log.info("%s", line)
            if config.test_only is not None:
                checkpoint = read_checkpoint(config.test_only)
                log_checkpoint(config, checkpoint)
                check_size(config, checkpoint)
            self.network = build_model(config)
            self.cost = count_cost(self.network, config)
            self.stack = self.stack.pop_all()  # keep all of it open until __exit__
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool | None:
        return self.stack.__exit__(kind, error, trace)

    def start_training(self) -> None:
        """Load the weights to start from, or the last checkpoint of a resumed run; prepare the network for training."""
        self.resumed = self.run.resume() if self.config.resume else None
        if self.resumed is None:
            data_folder(self.config, SYNAPSE_FOLDERS if self.config.of_volumes else ISIC_FOLDERS)  # before a download
            load_initial_weights(self.network, self.config)
        self.model = prepare(self.network, self.config, self.device)
        self._note_network()

    def training(
        self, loader: Loader, files: Sequence[str | Path], selected_by: str, pool: Sequence[str | Path] = ()
    ) -> AbstractContextManager[TrainingState]:
        """Return the state of the training, as a block that saves everything if a signal stops it.

        files        the data files, which must be the same in a resumed run
        selected_by  the loss or score that selects the best epoch, for messages
        pool         the files that all folds share, where they are not `files`"""
        config, rows = self.config, rows_of(self.config)
        check_smallest_batch(self.network, config, loader.batch_sampler)
        built = optimization_values(config, *rows)
        for warning in (collapse_warning(config), warm_up_warning(built["scheduler"], config.epochs)):
            if warning and distributed.is_main():
                log.warning("%s", warning)
        self.run.note("optimization", built, level=None)
        self.run.note("selected_by", selected_by, level=None)
        trained = len(loader.dataset)  # type: ignore[arg-type]  # the division into training and validation counts too
        data = f"{data_fingerprint(files)}/{trained}", data_fingerprint(files, contents=False)
        if config.folds:
            shared = data_fingerprint(sorted(pool or files, key=lambda file: Path(file).name))
            self.run.note("pool", shared, level=None)  # of all folds, for `cross_validation`
        self.state = TrainingState(
            self.run, config, self.model, loader, self.compute, rows, self.resumed, data, selected_by, self.tracker
        )
        return self.state.saved_when_stopped()

    def trained_model(self) -> Any:
        """Return the model with the weights of the best epoch, or of the checkpoint to test."""
        if self.config.test_only is not None:
            self._note_network()
        load_checkpoint_weights(self.network, self.config.test_only or self.run.checkpoints / "best.pth")
        return prepare(self.network, self.config, self.device, trains=False)

    def finish(self, scores: dict[str, Any], table: str, rows: list[dict[str, Any]], samples: Sequence) -> None:
        """Write the results of the test: metrics.json, a table of images or cases, panels.png, report.html."""
        from report import report_at_end  # here, so that no training loads the report before its end

        config, folder = self.config, self.run.folder
        self.run.save_json("metrics.json", scores)
        if distributed.is_main():
            write_rows(folder / table, rows)
            names = config.structures if config.num_classes > 1 else None
            show_panels(folder, samples, self.state.step if self.state else 0, names, config.structure_colours)
            log.info("results are in %s", folder)
            report_at_end(folder)
            if self.tracker is not None and (folder / "report.html").exists():
                self.tracker.add({f"test/{name}": value for name, value in scores.items()}, config.epochs)
                self.tracker.add_file(folder / "report.html")

    def _note_network(self) -> None:
        before = self.run.facts() if self.config.resume and distributed.is_main() else {}
        self.run.note("device", describe_device(self.config, self.device))
        self.run.note("torch", torch.__version__, level=None)
        for name, fact in self.run.facts().items():
            if name in ("device", "torch") and before.get(name, fact) != fact:
                log.warning("the resumed run may round differently: found %s %s, before %s", name, fact, before[name])
        self.run.note("scan", choose_backend(self.config, self.device), level=None)
        self.run.note("network", self.cost.result())
