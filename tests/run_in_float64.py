"""Runs train.py or train_synapse.py, its first argument, in double precision: rounding can't look like a mistake. Files
are written late, as on a slow disk: no process may go on as if they were there.

Used by test_train.py, under torchrun and in processes of tests/ranks.py."""

import importlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import training  # noqa: E402
from utils.runs import checkpoint  # noqa: E402
from utils.runs.command_line import run  # noqa: E402


class Doubled:
    """A loader, or an epoch's batches, whose floating tensors are float64."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for images, targets, names, *drawn in self.loader:
            yield *((images, targets) if drawn else doubled(images, targets)), names, *drawn

    def finish(self, *tensors):
        return doubled(*self.loader.finish(*tensors))


def doubled(*tensors):
    return tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors)


def in_double(loop):
    return lambda model, loader, *rest, **options: loop(model, Doubled(loader), *rest, **options)


def main(script, *flags):
    """Changes this process for good."""
    write_atomically = checkpoint.write_atomically

    def write_late(*arguments):
        time.sleep(1)
        write_atomically(*arguments)

    checkpoint.write_atomically = write_late
    sys.argv = [script, *flags]
    script = importlib.import_module(script.removesuffix(".py"))
    build_model, train_one_epoch = training.build_model, script.train_one_epoch
    training.build_model = lambda config: build_model(config).double()
    script.train_one_epoch = in_double(train_one_epoch)
    if script.__name__ == "train":
        script.evaluate = in_double(script.evaluate)
        run(script.main, script.ISICConfig, script.resolve)
    else:
        script.test = lambda session: None  # volumes go through the network in float32
        run(script.main, script.SynapseConfig, script.resolve)


if __name__ == "__main__":
    main(*sys.argv[1:])
