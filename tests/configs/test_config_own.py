import json

import numpy as np
from PIL import Image

import train
from configs.config_own import OwnConfig
from datasets.masks import parse_mask_values
from datasets.synthetic import lesion
from tests.tiny import TRAINING
from utils.files import read_rows

SMALL = TRAINING | dict(epochs=1)


def test_the_example_trains_on_colours_and_validates_on_other_patients(tmp_path):
    """Four patients with three images each, masks in the example's colours, two folds."""
    data = tmp_path / "data"
    colours = np.array(parse_mask_values(OwnConfig().mask_values, OwnConfig().num_classes), dtype=np.uint8)
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
    for number in range(12):
        name = f"patient{number // 3:02d}_{number % 3}.png"
        image, mask = lesion(np.random.default_rng(number), 40)
        classes = (mask >= 128) * (1 + (np.arange(40) >= 20))  # left half class 1, right half class 2
        Image.fromarray(image).save(data / "images" / name)
        Image.fromarray(colours[classes]).save(data / "masks" / name)

    validated = []
    for fold in (0, 1):
        runs = tmp_path / f"runs{fold}"
        train.main(OwnConfig(**SMALL, data_path=str(data), folds=2, fold=fold, work_dir=str(runs)))
        (run,) = runs.iterdir()
        names = [row["name"] for row in read_rows(run / "test_images.csv")]
        assert len({name.split("_")[0] for name in names}) == 2 and len(names) == 6  # two patients, whole
        validated += names
        assert {"miou_class1", "miou_class2"} <= read_rows(run / "test_images.csv")[0].keys()
        assert json.loads((run / "config.json").read_text(encoding="utf-8"))["fold"] == fold
        assert {*np.unique(np.asarray(Image.open(run / "predictions" / f"{names[0]}.png")))} <= {0, 1, 2}
    assert len(set(validated)) == 12
