"""Run folders for tests, without a training."""

import json

from configs.config_setting import ISICConfig
from utils.files import write_rows


def make_run(folder, dice, truth=1000, facts=None, **config):
    """A run folder as train.py leaves it, with the given Dice of each image, and facts.json if there are facts."""
    folder.mkdir(parents=True)
    values = json.loads(json.dumps(vars(ISICConfig(dataset="isic17", load_ckpt_path="none"))))
    (folder / "config.json").write_text(json.dumps(values | config))
    if facts is not None:
        (folder / "facts.json").write_text(json.dumps(facts))
    mean = sum(dice) / len(dice)
    scores = {"miou": mean / 2, "dsc": mean, "dsc_per_image": mean, "split": "val"}
    (folder / "metrics.json").write_text(json.dumps(scores))
    write_rows(
        folder / "metrics.csv", [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "dsc": mean} for e in (1, 2)]
    )
    rows = [
        {"name": f"image{i}", "dsc": d, "tp": truth, "fp": 0, "fn": 0, "tn": 4096 - truth} for i, d in enumerate(dice)
    ]
    write_rows(folder / "test_images.csv", rows)
    return folder
