"""torchrun on two machines: two agents that meet at a port, each with its own process number 0."""

import json
import socket

import pytest

from configs.config_setting import ISICConfig
from datasets.demo import make_demo_isic
from tests.inference.networks import SMALL, save_trained
from tests.tiny import ROOT, TRAINING_FLAGS
from tests.training_process import finish, start, the_run
from utils.files import read_rows


def run_on_two(*command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    torchrun += [f"--rdzv-endpoint={endpoint}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    ended = [finish(agent) for agent in [start(*torchrun, *command) for _ in range(2)]]
    assert [status for status, _ in ended] == [0, 0], ended


@pytest.mark.slow
def test_two_agents_train_one_run(tmp_path):
    data = make_demo_isic(tmp_path / "data", size=40, train=6, val=3, test=1)
    flags = ["--dataset", "demo", "--data-path", data, "--work-dir", tmp_path / "runs", *TRAINING_FLAGS, "--epochs", 1]
    run_on_two("train.py", *flags)
    run = the_run(tmp_path / "runs")
    assert len(list((tmp_path / "runs").iterdir())) == len(read_rows(run / "metrics.csv")) == 1
    assert "2 processes" in json.loads((run / "facts.json").read_text())["device"]


@pytest.mark.slow
def test_two_agents_make_one_table(tmp_path):
    network = save_trained(tmp_path, ISICConfig(**SMALL))
    run_on_two("predict.py", network, ROOT / "data/samples/images", "--output", tmp_path / "out", "--device", "cpu")
    names = sorted(path.stem for path in (ROOT / "data/samples/images").iterdir())
    assert [row["name"] for row in read_rows(tmp_path / "out/structures.csv")] == names
    assert ", in 2 processes" in (tmp_path / "out/log.txt").read_text(encoding="utf-8")
