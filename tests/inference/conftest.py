import numpy as np
import pytest

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from datasets.demo import make_demo_isic, make_demo_synapse
from tests.inference.networks import SIZE, SMALL, save_trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    make_demo_isic(folder / "isic", size=SIZE, train=1, val=5, test=1)
    make_demo_synapse(folder / "synapse", size=40, train=1, val=1, test=1, slices=5)
    return folder


@pytest.fixture(scope="module")
def binary(folder):
    return save_trained(folder, ISICConfig(**SMALL))


@pytest.fixture(scope="module")
def organs(folder):
    return save_trained(folder, SynapseConfig(**SMALL))


@pytest.fixture
def colours():
    return np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
