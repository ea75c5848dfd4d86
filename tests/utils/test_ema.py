"""A moving average of weights: the formula, the block in which a network has it, its state."""

import copy

import pytest
import torch
from torch import nn

from utils.ema import WeightAverage


def steps(network, average, number, seed=0):
    """Trains in training mode, so that the averages of BatchNorm move as well; the state dicts after each step."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    optimizer.register_step_post_hook(average.update)
    states = []
    for _ in range(number):
        network(torch.randn(4, 2, 5, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        states.append(copy.deepcopy(network.state_dict()))
    return states


@pytest.fixture
def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


@pytest.mark.parametrize("decay, decays", [(0.998, (2 / 11, 3 / 12, 4 / 13)), (0.2, (2 / 11, 0.2, 0.2))])
def test_three_steps_follow_the_formula(decay, decays, network):
    expected = copy.deepcopy(network.state_dict())
    average = WeightAverage(network, decay)
    for state, d in zip(steps(network, average, 3), decays, strict=True):
        expected = {n: d * expected[n] + (1 - d) * w if w.is_floating_point() else w for n, w in state.items()}
    found = average.module.state_dict()
    assert found["1.num_batches_tracked"] == 3 and not torch.equal(found["0.weight"], network[0].weight)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight)


def test_within_the_block_the_network_has_the_averages_in_the_same_memory(network):
    average = WeightAverage(network, 0.9)
    steps(network, average, 2)
    weights, averages = (copy.deepcopy(net.state_dict()) for net in (network, average.module))
    places = [tensor.data_ptr() for tensor in network.state_dict().values()]
    with pytest.raises(KeyError), average.applied():
        assert places == [tensor.data_ptr() for tensor in network.state_dict().values()]
        assert all(torch.equal(tensor, averages[name]) for name, tensor in network.state_dict().items())
        raise KeyError
    for net, expected in ((network, weights), (average.module, averages)):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())


def test_its_state_continues_it(network):
    average = WeightAverage(network, 0.9)
    steps(network, average, 2)
    other = WeightAverage(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), 0.9)
    other.module.load_state_dict(copy.deepcopy(average.module.state_dict()))
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    for one in (average, other):
        steps(one.network, one, 2, seed=5)
    for one, two in zip(average.module.state_dict().values(), other.module.state_dict().values(), strict=True):
        assert torch.equal(one, two)
