"""A folder of another kind of data: the error names the command that is for it."""

import pytest

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve


@pytest.mark.parametrize(
    "kind, files, found",
    [
        (ISICConfig, ["train_npz/a.npz", "lists/list_Synapse/train.txt"], "train_synapse.py"),
        (ISICConfig, ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], "datasets.prepare_volumes"),
        (ISICConfig, ["images/a.nii", "masks/a.nii"], "datasets.prepare_volumes"),
        (ISICConfig, ["images/a.png", "masks/a.png"], "--folds"),
        (SynapseConfig, ["train/images/a.png", "train/masks/a.png"], r"\btrain.py"),
        (SynapseConfig, ["images/a.png", "masks/a.png"], r"\btrain.py"),
        (SynapseConfig, ["a.nii.gz"], "datasets.prepare_volumes"),
    ],
)
def test_the_right_command_is_named(kind, files, found, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{found}"):
        resolve(kind, ["--dataset", "own", "--data-path", str(tmp_path)])


@pytest.mark.parametrize("flags", [["--folds", "2"], ["--protocol", "holdout"]])
def test_a_pool_that_is_divided_passes(flags, tmp_path):
    (tmp_path / "images").mkdir()
    resolve(ISICConfig, ["--dataset", "own", "--data-path", str(tmp_path), *flags])
