"""integrations/nnunet: nnU-Net's own commands plan, train and predict with VM-UNet."""

import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from tests.tiny import ROOT

pytest.importorskip("nnunetv2")

SHORT = """
from nnUNetTrainerVMUNet import nnUNetTrainerVMUNet
from vmunet import VMUNet


class nnUNetTrainerVMUNetShort(nnUNetTrainerVMUNet):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1

    def configure_optimizers(self):
        assert type(self.network) is VMUNet and self.network.num_classes == 3
        return super().configure_optimizers()
"""
# nnU-Net's search for trainers imports torchvision, which may be of another build than PyTorch
ENTRY = "import vmunet.torchvision_compat; from nnunetv2.{} import {} as entry; entry()"


@pytest.fixture
def dataset(tmp_path, shared):
    """Eight volumes of the hippocampus as nnU-Net's raw data, Dataset904_Hippo."""
    source, raw = shared / "data/Task04_Hippocampus", tmp_path / "raw/Dataset904_Hippo"
    labels = sorted(path for path in (source / "labelsTr").glob("*.nii.gz") if path.name[0] != ".")[:8]
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for label in labels:
        shutil.copy(label, raw / "labelsTr")
        shutil.copy(source / "imagesTr" / label.name, raw / "imagesTr" / label.name.replace(".nii", "_0000.nii"))
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2}}
    (raw / "dataset.json").write_text(json.dumps(about | {"numTraining": 8, "file_ending": ".nii.gz"}))
    return raw


def nnunet(folder, module, entry, *arguments):
    """Run a command of nnU-Net with the trainer of this repository; return what it printed."""
    paths = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    trainers = os.pathsep.join(map(str, (ROOT / "integrations/nnunet", folder / "trainers")))
    paths |= {"nnUNet_extTrainer": trainers, "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{trainers}"}
    command = [sys.executable, "-c", ENTRY.format(module, entry), *map(str, arguments)]
    environment = os.environ | paths | {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_nnunet_trains_and_predicts_with_vmunet(dataset, tmp_path):
    """One epoch of two batches on eight volumes, then nnU-Net's validation and prediction with the saved weights."""
    shutil.copytree(ROOT / "models", tmp_path / "site/vmunet")
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/nnUNetTrainerVMUNetShort.py").write_text(SHORT)
    plan = ("experiment_planning.plan_and_preprocess_entrypoints", "plan_and_preprocess_entry")
    nnunet(tmp_path, *plan, "-d", 904, "-c", "2d", "-np", 1, "-npfp", 1)
    plans = tmp_path / "preprocessed/Dataset904_Hippo/nnUNetPlans.json"
    values = json.loads(plans.read_text())
    values["configurations"]["2d"]["batch_size"] = 2
    plans.write_text(json.dumps(values))
    trainer = ("-tr", "nnUNetTrainerVMUNetShort", "-device", "cpu")
    printed = nnunet(tmp_path, "run.run_training", "run_training_entry", 904, "2d", 0, *trainer)
    assert "Mean Validation Dice" in printed
    case = tmp_path / "case"
    case.mkdir()
    image = sorted((dataset / "imagesTr").iterdir())[0]
    shutil.copy(image, case)
    arguments = ("-i", case, "-o", tmp_path / "out", "-d", 904, "-c", "2d", "-f", 0, *trainer, "-npp", 1, "-nps", 1)
    nnunet(tmp_path, "inference.predict_from_raw_data", "predict_entry_point", *arguments)
    mask = nib.load(tmp_path / "out" / image.name.replace("_0000", ""))
    assert mask.shape == nib.load(image).shape and np.isin(np.asarray(mask.dataobj), (0, 1, 2)).all()


def test_patches_of_three_dimensions_are_refused(tmp_path):
    """The configuration 3d_fullres has no two-dimensional network."""
    code = """
from types import SimpleNamespace
from nnUNetTrainerVMUNet import nnUNetTrainerVMUNet
try:
    nnUNetTrainerVMUNet.build_network_architecture(None, SimpleNamespace(patch_size=[16, 64, 64]), 1, 2)
except ValueError as error:
    print(error)
"""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/vmunet").symlink_to(ROOT / "models")
    path = os.pathsep.join(map(str, (tmp_path / "site", ROOT / "integrations/nnunet")))
    code, environment = "import vmunet.torchvision_compat" + code, os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "found patches of [16, 64, 64] voxels, expected the configuration 2d" in done.stdout, done.stderr
