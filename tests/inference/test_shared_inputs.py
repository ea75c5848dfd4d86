"""predict.py under torchrun: each input once, one table, and what the death of a process costs."""

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from inference.inputs import Input
from inference.output_folder import OutputFolder
from tests.inference.test_batch import predicted, run
from tests.ranks import environments, run_in_two_processes
from tests.tiny import ROOT
from tests.training_process import finish, start, wait_for
from utils.files import read_rows

SAMPLES = ROOT / "data/samples/images"
SLOWLY = """
import time
import utils.start
from inference.prediction import Prediction
from predict import PredictConfig, main, run
save = Prediction.save
Prediction.save = lambda *arguments: (time.sleep(0.5), save(*arguments))
run(main, PredictConfig)
"""


def outputs(folder):
    """{name of a mask: its bytes}"""
    return {path.name: path.read_bytes() for path in (folder / "masks").iterdir()}


@pytest.mark.slow
def test_two_processes_predict_each_input_once_and_make_one_table(binary, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 7 .*broken"):
        run(binary, broken, SAMPLES, output=tmp_path / "one")
    flags = [binary, broken, SAMPLES, "--output", tmp_path / "two", "--device", "cpu"]
    with environments() as variables:
        ended = [finish(process) for process in [start("predict.py", *flags, environment=own) for own in variables]]
    assert [status for status, _ in ended] == [2, 2], ended
    said = [text for _, text in ended]
    assert ["1 of 7 inputs were left out" in text for text in said] == [True, False]
    assert "inputs: 6 predicted, 1 left out" in (tmp_path / "two/log.txt").read_text(encoding="utf-8")
    for table in ("structures.csv", "left_out.csv"):
        assert read_rows(tmp_path / "two" / table) == read_rows(tmp_path / "one" / table)
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one") and len(predicted(tmp_path / "two")) == 6
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes torchrun has started")
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_killed_process_costs_its_share_until_the_next_command(victim, binary, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(24):
        shutil.copy(SAMPLES / "ISIC_0012143.jpg", images / f"{number:02}.jpg")
    (tmp_path / "slowly.py").write_text(SLOWLY)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start(*torchrun, tmp_path / "slowly.py", binary, images, "--output", out, "--device", "cpu",
                    environment={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert wait_for(lambda: len(list(out.glob("masks/*.png"))) >= 4, process), finish(process)[1]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (pid,) = [p for p in children if f"\0RANK={victim}\0" in Path(f"/proc/{p}/environ").read_text()]
    os.kill(int(pid), signal.SIGKILL)
    status, said = finish(process)
    assert status == 1 and re.search("stopped after .* of 12 inputs; --existing skip predicts the others", said), said
    survivor = out / ("structures.csv" if victim == "1" else "structures.1.csv")
    kept = {row["name"] for row in read_rows(survivor)}
    assert kept and {int(name) % 2 for name in kept} == {1 - int(victim)}
    before = {name: (out / f"masks/{name}.png").stat().st_mtime_ns for name in kept}
    run(binary, images, output=out, existing="skip")
    assert len(predicted(out)) == len(read_rows(out / "structures.csv")) == 24
    assert before == {name: (out / f"masks/{name}.png").stat().st_mtime_ns for name in kept}
    assert not list(out.glob("structures.*.csv"))


def save_and_gather(rank, folder):
    names = {Input(Path(f"{number}.png"), "image"): str(number) for number in range(5)}
    with pytest.raises(ValueError, match="INPUT: found 3, 4 inputs in the processes"):
        OutputFolder(folder, "refuse", dict(list(names.items())[: 3 + rank])).check_same()
    output = OutputFolder(folder, "refuse", names)
    output.check_same()
    for item in output.todo[rank::2]:
        output.add(item, [{"class": 1}])
    output.save_table()
    output.gather()
    if rank == 0:
        assert [row["name"] for row in read_rows(output.table)] == list("01234") and output.parts() == []
        with pytest.raises(OSError, match="found 0 rows in .*structures.1.csv, expected 2; .* the same folder"):
            output.gather()  # the table of the other process has gone, as if it were on another machine
    else:
        output.gather()


@pytest.mark.slow
def test_rows_are_gathered_in_the_order_of_the_inputs_and_none_is_missed(tmp_path):
    run_in_two_processes(save_and_gather, tmp_path)


def test_overwrite_forgets_earlier_results_before_the_new_ones_exist(tmp_path):
    """A command that is killed at once leaves masks of the old network, which `skip` must not take for new ones."""
    names = {Input(tmp_path / "a.png", "image"): "a"}
    record = {"sha256": "new", "members": [{"sha256": "new"}], "options": {}}
    for path in ("masks/a.png", "prediction.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for table in ("structures.csv", "structures.1.csv"):
        (tmp_path / table).write_text("name,input\na," + str(tmp_path / "a.png") + "\n")
    assert OutputFolder(tmp_path, "skip", names).todo == []
    OutputFolder(tmp_path, "overwrite", names).begin(record)
    assert OutputFolder(tmp_path, "skip", names).todo == list(names)
