"""predict.py with many inputs: a bad one costs itself only, is named, and the table holds the others."""

import errno
import os
import re
import shutil
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from inference.ensemble import Ensemble
from inference.inputs import ABOUT, Input, search
from inference.output_folder import OutputFolder
from predict import PredictConfig, Prediction, Predictor
from utils.files import read_rows
from utils.runs.run_folder import stop_log


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate("abc"):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def run(checkpoint, *inputs, output, **options):
    options = {"device": "cpu"} | options
    try:
        predict.main(
            PredictConfig(checkpoint=str(checkpoint), inputs=tuple(map(str, inputs)), output=str(output), **options)
        )
    finally:
        stop_log()


def predicted(output):
    """Names in the table, which must be those of the masks."""
    found = {row["name"] for row in read_rows(output / "structures.csv")}
    assert found == {path.stem for path in (output / "masks").iterdir()}
    return found


def test_a_file_of_another_kind_is_named_and_counted(binary, images, tmp_path):
    Image.new("P", (4, 4)).save(images / "d.gif")
    with pytest.raises(ValueError, match="1 of 4 .*d.gif"):
        run(binary, images, tmp_path / "images" / "a.png", output=tmp_path / "out")
    assert predicted(tmp_path / "out") == set("abc")
    text = (tmp_path / "out/log.txt").read_text(encoding="utf-8")
    assert re.search(r"d\.gif .*\.png", text)
    assert "inputs: 3 predicted, 1 left out; files and folders passed over: 0;" in text
    (row,) = read_rows(tmp_path / "out/left_out.csv")
    assert row["path"].endswith("d.gif") and row["mistake"] == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_no_result_can_have_are_left_out(binary, images, tmp_path):
    content = (images / "a.png").read_bytes()
    for name in (b"b\326\320.png", b"m" * 250 + b".png"):
        with open(os.fsencode(images) + b"/" + name, "wb") as file:
            file.write(content)
    with pytest.raises(ValueError, match="2 of 5 "):
        run(binary, images, output=tmp_path / "out")
    assert predicted(tmp_path / "out") == set("abc")
    text = (tmp_path / "out/log.txt").read_text(encoding="utf-8")
    assert "'b\\udcd6\\udcd0'" in text and re.search("250 .* 240", text)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_not_utf8_is_no_hindrance(binary, images, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/b\326\320")
    os.rename(images, folder)
    run(binary, folder, output=tmp_path / "out")
    run(binary, folder, output=tmp_path / "out", existing="skip")
    assert predicted(tmp_path / "out") == set("abc")


@pytest.mark.parametrize("where", ["predicting", "saving", "rows"])
def test_an_error_of_any_kind_costs_one_input(where, binary, images, tmp_path, monkeypatch):
    if where == "predicting":
        decide = Ensemble.decide

        def wrong(self, probs):
            if wrong.calls in (1, 3):  # b in its batch, then on its own
                wrong.calls += 1
                raise RuntimeError("something that nobody thought of")
            wrong.calls += 1
            return decide(self, probs)

        wrong.calls = 0
        monkeypatch.setattr(Ensemble, "decide", wrong)
    else:
        name = {"saving": "save", "rows": "structures"}[where]
        original, second = getattr(Prediction, name), np.asarray(Image.open(images / "b.png")).transpose(2, 0, 1)

        def wrong(self, *args, **options):  # threads save in any order
            if np.array_equal(self.source.pixels, second):
                raise TypeError("something that nobody thought of")
            return original(self, *args, **options)

        monkeypatch.setattr(Prediction, name, wrong)
    with pytest.raises(ValueError, match=r"1 of 3 .*b\.png"):
        run(binary, images, output=tmp_path / "out")
    assert predicted(tmp_path / "out") == {"a", "c"}
    text = (tmp_path / "out/log.txt").read_text(encoding="utf-8")
    assert re.search(r"b\.png.*something that nobody thought of", text)


@pytest.mark.parametrize(("device", "expected"), [("cuda", 1), ("cpu", 3)])
def test_beside_a_gpu_each_thread_that_reads_computes_alone(device, expected, binary, images, monkeypatch):
    predictor = Predictor(binary, device="cpu")
    read, of_readers, of_others = predictor._read_and_prepare, [], []

    def noted(item):
        of_readers.append(torch.get_num_threads())
        return read(item)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(predictor, "device", torch.device(device))
        monkeypatch.setattr(predictor, "_read_and_prepare", noted)
        results = list(predictor.predict_all(search([str(images)], "out").inputs))
        thread = threading.Thread(target=lambda: of_others.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert len(results) == 3 and of_readers == [expected] * 3
        assert torch.get_num_threads() == 3 and of_others == [3]
    finally:
        torch.set_num_threads(before)


def test_a_full_disk_ends_the_batch(binary, images, tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError("could not be written") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Prediction, "save", full)
    with pytest.raises(OSError, match="could not be written"):
        run(binary, images, output=tmp_path / "out")


def test_too_little_memory_for_one_image_costs_it_only(binary, images, tmp_path, monkeypatch):
    Image.new("RGB", (333, 40), (9, 99, 200)).save(images / "b.png")
    interpolate = torch.nn.functional.interpolate

    def limited(pixels, size, **options):
        if tuple(size) == (40, 333):
            raise torch.OutOfMemoryError("no")
        return interpolate(pixels, size, **options)

    monkeypatch.setattr("inference.ensemble_member.F.interpolate", limited)
    with pytest.raises(ValueError, match=r"1 of 3 .*b\.png"):
        run(binary, images, output=tmp_path / "out")
    assert predicted(tmp_path / "out") == {"a", "c"}


def test_results_inside_the_input_are_not_predicted_again(binary, images):
    run(binary, images, output=images / "pred")
    before = sorted(path.name for path in (images / "pred").rglob("*"))
    run(binary, images, output=images / "pred", existing="skip")
    assert predicted(images / "pred") == set("abc")
    assert sorted(path.name for path in (images / "pred").rglob("*")) in (before, sorted([*before, "left_out.csv"]))


def test_a_new_input_of_a_known_stem_does_not_rename_the_old_one(binary, images, tmp_path):
    run(binary, images, output=tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.png").write_bytes((images / "b.png").read_bytes())
    run(binary, images, tmp_path / "other", output=tmp_path / "out", existing="skip")
    assert predicted(tmp_path / "out") == {"a", "b", "c", "other_a.png"}


def test_files_of_the_user_are_never_among_the_results(binary, images, tmp_path):
    """`--output data` would overwrite the experts' masks in data/masks."""
    (tmp_path / "masks").mkdir()
    for existing in ("skip", "overwrite"):
        with pytest.raises(ValueError, match="--output .*images, masks"):
            run(binary, images, output=tmp_path, existing=existing)
    assert not (tmp_path / ABOUT).exists()


def test_inputs_of_another_kind_are_refused_before_anything_is_written(organs, binary, images, tmp_path):
    with pytest.raises(ValueError, match="images .*volumes.*--insist"):
        run(organs, images, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(organs, images, output=tmp_path / "out", insist=True)
    assert predicted(tmp_path / "out") == set("abc")
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.size == (50, 40) and mask.mode == "P"


def test_a_table_that_is_open_elsewhere_is_saved_at_the_end(tmp_path, monkeypatch):
    """Some programs lock a file that they show."""
    rows, save = [{"structure": "a"}], OutputFolder.save_table

    def locked(self):
        raise PermissionError(f"{self.path} is open")

    names = {Input(tmp_path / f"{number}.png", "image"): str(number) for number in range(60)}
    output = OutputFolder(tmp_path, "refuse", names)
    monkeypatch.setattr(OutputFolder, "save_table", locked)
    for item in names:
        output.add(item, rows)
    monkeypatch.setattr(OutputFolder, "save_table", save)
    output.save_table()
    assert len(read_rows(tmp_path / "structures.csv")) == 60


@pytest.mark.parametrize("existing", ["refuse", "skip", "overwrite"])
def test_the_torn_file_of_a_killed_command_is_no_obstacle(binary, images, tmp_path, existing, caplog):
    torn = tmp_path / "out" / f".{16 * '0'}.tmp"
    torn.parent.mkdir()
    for name in (torn.name, ".lock", ".lock.process"):
        (torn.parent / name).touch()
    run(binary, images / "a.png", output=tmp_path / "out", existing=existing)
    assert predicted(tmp_path / "out") == {"a"} and not torn.exists() and torn.name in caplog.text


@pytest.mark.parametrize("removed", ["masks", ""])
def test_results_that_are_removed_meanwhile_are_an_error(binary, images, tmp_path, monkeypatch, removed):
    out, save = tmp_path / "out", Prediction.save

    def save_then_remove(self, folder, name, *options):
        save(self, folder, name, *options)
        if name == "b":
            shutil.rmtree(out / removed)

    monkeypatch.setattr(Prediction, "save", save_then_remove)
    monkeypatch.setattr(predict, "available_cpus", lambda: 1)
    with pytest.raises(OSError, match=str(out)):
        run(binary, images, output=out)
    monkeypatch.undo()
    run(binary, images, output=out, existing="skip")
    assert predicted(out) == set("abc") and len(read_rows(out / "structures.csv")) == 3
