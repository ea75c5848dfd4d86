"""torchrun on two machines: two agents that meet at a port, each with its own process number 0."""

import json
import socket

import pytest

from datasets.demo import make_demo_isic
from tests.tiny import TRAINING_FLAGS
from tests.training_process import finish, start, the_run
from utils.files import read_rows


@pytest.mark.slow
def test_two_agents_train_one_run(tmp_path):
    data = make_demo_isic(tmp_path / "data", size=40, train=6, val=3, test=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    command = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    command += [f"--rdzv-endpoint={endpoint}", "--rdzv-id=test", "--local-addr=127.0.0.1", "train.py"]
    command += ["--dataset", "demo", "--data-path", data, "--work-dir", tmp_path / "runs", *TRAINING_FLAGS]
    ended = [finish(agent) for agent in [start(*command, "--epochs", 1) for _ in range(2)]]
    assert [status for status, _ in ended] == [0, 0], ended
    run = the_run(tmp_path / "runs")
    assert len(list((tmp_path / "runs").iterdir())) == len(read_rows(run / "metrics.csv")) == 1
    assert "2 processes" in json.loads((run / "facts.json").read_text())["device"]
