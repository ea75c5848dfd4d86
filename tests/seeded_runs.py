"""Short seeded trainings of both scripts, and the losses of all their steps (tests/golden/losses.json).

python -m tests.seeded_runs      adds the losses of this processor to the golden file
"""

import json
import platform
import tempfile
from pathlib import Path

import torch

import train
import train_synapse
from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from datasets.demo import make_demo_isic, make_demo_synapse
from tests.tiny import GOLDEN, TRAINING
from tests.training_process import losses

PATH = GOLDEN / "losses.json"
TINY = TRAINING | dict(dataset="demo", batch_size=5, epochs=3, print_interval=1)
STABLE = dict(lr=5e-4, sch="CosineWarmup", clip_grad_norm=1.0, rotation="sample", decay="weights_only")


def processor():
    """What the bits of a loss depend on: PyTorch's release, and the processor, for which kernels are compiled."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = [facts.get(name, "?") for name in ("vendor_id", "cpu family", "model")]
    release = torch.__version__.partition("+")[0]
    return " ".join([release, platform.machine(), *model, torch.backends.cpu.get_cpu_capability()])


def run_all(folder):
    """{run: losses of its steps} of 18 steps of train.py by each recipe, and 15 of train_synapse.py, on one thread."""
    isic = make_demo_isic(folder / "isic", size=40, train=26, val=3)
    synapse = make_demo_synapse(folder / "synapse", size=40, train=3, test=1, slices=8)
    runs = {
        "images published": (train, ISICConfig, dict(data_path=str(isic))),
        "images stable": (train, ISICConfig, dict(data_path=str(isic), **STABLE)),
        "volumes published": (train_synapse, SynapseConfig, dict(data_path=str(synapse))),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {}
        for name, (script, config_class, changes) in runs.items():
            script.main(config_class(**TINY | changes, work_dir=str(folder / name)))
            (run,) = (folder / name).iterdir()
            found[name] = list(losses(run / "tensorboard").values())
        return found
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    golden = json.loads(PATH.read_text()) if PATH.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        golden[processor()] = run_all(Path(name))
    PATH.write_text(json.dumps(golden, indent=1) + "\n")
