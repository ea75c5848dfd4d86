"""A network that was trained on the volumes of datasets.prepare_volumes sees a raw volume as it saw those."""

import json

import h5py
import nibabel
import numpy as np
import pytest

from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.prepare_volumes import PrepareVolumes, prepare
from inference.ensemble import check_compatible
from inference.inputs import find_inputs
from inference.predictor import Predictor
from tests.inference.networks import SMALL, save_trained

OBLIQUE = np.array([[0.77, 0, -0.64, 0], [0, 1, 0, 0], [0.64, 0, 0.77, 0], [0, 0, 0, 1]])
AFFINES = {
    "sagittal slices": (np.diag([5.0, -1, 1, 1]), "PIL"),  # the thickest axis is the first of the file
    "axes turned round": (np.diag([1.0, 1, -4, 1]), "LPS"),
    "oblique": (OBLIQUE @ np.diag([1, 1, 8, 1.0]), "stored"),
}


@pytest.mark.parametrize("case", AFFINES)
def test_a_raw_volume_becomes_what_the_network_was_trained_on(tmp_path, case):
    affine, orientation = AFFINES[case]
    rng = np.random.default_rng(0)
    for name in ("p1", "p2"):
        values, labels = rng.integers(0, 256, (40, 36, 5)), rng.integers(0, 3, (40, 36, 5))
        if case == "sagittal slices":
            values, labels = values.transpose(2, 0, 1), labels.transpose(2, 0, 1)
        for kind, array in (("images", values), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), affine), tmp_path / kind / f"{name}.nii")
    folders = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "out": str(tmp_path / "out")}
    record, parts = prepare(PrepareVolumes(**folders))
    assert record["orientation"] == orientation

    values = SMALL | {"num_classes": 3, "dataset": "own", "data_path": str(tmp_path / "out")}
    config = resolve(SynapseConfig(**{k: v for k, v in values.items() if k in SynapseConfig.__dataclass_fields__}))
    assert (config.scaling, config.scaling_range, config.orientation) == ("percentiles", (0.5, 99.5), orientation)
    predictor = Predictor(save_trained(tmp_path, config))
    test = parts["test"][0]
    (raw,) = find_inputs([tmp_path / "images" / f"{test}.nii"])
    with h5py.File(tmp_path / "out" / "test_vol_h5" / f"{test}.npy.h5") as file:
        np.testing.assert_allclose(predictor._read_and_prepare(raw)[0].slices, file["image"][:], atol=1e-6)
    result = predictor.predict(raw.path)
    mask = result.source.to_nifti(result.mask, np.uint8)
    assert mask.shape == nibabel.load(raw.path).shape
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)


def test_what_a_folder_says_must_be_what_prepare_volumes_writes(tmp_path):
    record = {"intensities": {"kind": "percentiles", "low": 9, "high": 1}}
    (tmp_path / "preparation.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"preparation\.json: .*intensities"):
        resolve(SynapseConfig(dataset="own", data_path=str(tmp_path)))


def test_networks_of_other_intensities_are_not_averaged():
    class Fake:
        def __init__(self, **values):
            self.config = SynapseConfig(dataset="own", **values)

    with pytest.raises(ValueError, match="b: found intensities by percentiles"):
        check_compatible([Fake(), Fake(scaling="percentiles", scaling_range=(1, 99))], ["a", "b"])
