"""A network that was trained on the volumes of datasets.prepare_volumes sees a raw volume as it saw those."""

import itertools
import json
import re

import h5py
import nibabel
import numpy as np
import pytest

import inference.ensemble
import predict
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.prepare_volumes import PrepareVolumes, prepare
from inference.ensemble import check_compatible
from inference.inputs import find_inputs
from inference.predictor import Predictor
from predict import PredictConfig
from tests.inference.networks import SMALL, save_trained
from utils.files import read_rows
from utils.runs.run_folder import stop_log

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


def test_prediction_reads_the_channel_that_was_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("p1", "p2"):
        arrays = {"images": rng.integers(0, 256, (40, 36, 5, 2)), "labels": rng.integers(0, 3, (40, 36, 5))}
        for kind, array in arrays.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), np.eye(4)), tmp_path / kind / f"{name}.nii")
    folders = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "out": str(tmp_path / "out")}
    _, parts = prepare(PrepareVolumes(**folders, channel=1))
    config = resolve(SynapseConfig(**SMALL | {"dataset": "own", "data_path": str(tmp_path / "out")}))
    checkpoint, test = save_trained(tmp_path, config), parts["test"][0]
    (raw,) = find_inputs([tmp_path / "images" / f"{test}.nii"])
    with h5py.File(tmp_path / "out" / "test_vol_h5" / f"{test}.npy.h5") as file:
        trained_on = file["image"][:]
    np.testing.assert_allclose(Predictor(checkpoint)._read_and_prepare(raw)[0].slices, trained_on, atol=1e-6)
    other = Predictor(checkpoint, channel=0)._read_and_prepare(raw)[0].slices
    assert not np.allclose(other, trained_on, atol=0.1)


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


# ---- the labels of the data, not the classes of the training


IDS = (1, 6, 700)  # of the classes 1, 2, 3


def stripes(slices):
    return (np.indices(slices.shape).sum(0) % 3).astype(np.uint8)[:, 0]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A network of volumes whose labels have gaps, which finds spleen and liver in stripes, and a raw volume."""
    monkeypatch.setattr(inference.ensemble, "predict_slices", lambda network, slices, *rest, **options: stripes(slices))
    rng = np.random.default_rng(0)
    for name in ("p1", "p2"):
        values, labels = rng.integers(-1000, 900, (20, 24, 4)), rng.choice([0, *IDS], (20, 24, 4))
        for kind, array in (("images", values), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nibabel.save(
                nibabel.Nifti1Image(array.astype(np.int16), np.diag([1, 1, 3, 1])), tmp_path / kind / f"{name}.nii"
            )
    folders = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels"), "out": str(tmp_path / "out")}
    prepare(PrepareVolumes(**folders, class_names=("spleen", "liver", "tumour")))
    config = resolve(SynapseConfig(**SMALL | {"dataset": "own", "data_path": str(tmp_path / "out")}))
    assert config.label_ids == IDS
    return save_trained(tmp_path, config), tmp_path / "images" / "p1.nii"


def run(checkpoint, scan, out, **options):
    try:
        config = dict(checkpoint=str(checkpoint), inputs=(str(scan),), output=str(out), device="cpu")
        predict.main(PredictConfig(**config, **options))
    finally:
        stop_log()
    return nibabel.load(out / "masks" / "p1.nii.gz"), read_rows(out / "structures.csv")


def test_masks_tables_and_headers_have_the_labels_of_the_data(prepared, tmp_path):
    mask, rows = run(*prepared, tmp_path / "predicted")
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) == {0, 1, 6} and mask.get_data_dtype() == np.uint16
    assert [(row["structure"], row["class"]) for row in rows] == [("spleen", "1"), ("liver", "6"), ("tumour", "700")]
    assert [int(row["pixels"]) for row in rows] == [np.count_nonzero(values == label) for label in IDS]
    (extension,) = mask.header.extensions
    assert json.loads(extension.get_content()) == {"labels": {"1": "spleen", "6": "liver", "700": "tumour"}}
    about = json.loads((tmp_path / "predicted" / "prediction.json").read_text(encoding="utf-8"))
    assert about["network"]["mask_values"] == [0, *IDS]
    result = Predictor(prepared[0], device="cpu").predict(prepared[1])
    np.testing.assert_array_equal(result.source.as_stored(result.mask), values)


def test_labels_of_volumes_are_compared_by_name_and_place(prepared, tmp_path):
    checkpoint, scan = prepared
    stored, _ = run(checkpoint, scan, tmp_path / "predicted")
    values, labels = np.asarray(stored.dataobj), tmp_path / "experts" / "p1_seg.nii.gz"
    labels.parent.mkdir()

    numbers = itertools.count()

    def compare(array, affine):
        nibabel.save(nibabel.Nifti1Image(array, affine), labels)
        rows = run(checkpoint, scan, tmp_path / f"compared_{next(numbers)}", truth=str(labels.parent))[1]
        return [row["dice"] and float(row["dice"]) for row in rows]

    affine = stored.affine
    assert compare(values, affine) == [1, 1, ""]
    turned = affine @ np.array([[-1, 0, 0, len(values) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert compare(values[::-1], turned) == [1, 1, ""]
    assert compare(np.where(values == 6, 0, values), affine) == [1, 0, ""]
    for array, matrix, found in (
        (values[:, :, :3], affine, r"3, 24, 20"),
        (values, affine + np.outer([0, 1, 0, 0], [0, 0, 0, 1]), "1.0 mm"),
        (np.where(values == 6, 2, values), affine, "labels 2,? "),
    ):
        with pytest.raises(ValueError, match="1 of 1"):
            compare(array, matrix)
        assert re.search(
            rf"p1_seg\.nii\.gz.*{found}", max(tmp_path.glob("compared_*/log.txt")).read_text(encoding="utf-8")
        )
