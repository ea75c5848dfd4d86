"""For which batches graphs are recorded. `benchmarks/gpu.py --check` sees on a GPU that they compute the same."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from models import cuda_graphs
from models.cuda_graphs import GraphedModel


@pytest.fixture
def recorded(monkeypatch):
    """Stands for the GPU: a list of (kind, batch size, pool) that were recorded; such a graph answers with its kind."""
    recorded = []

    def stand_in(kind):
        class Graph:
            def __init__(self, module, images, pool):
                recorded.append((kind, len(images), pool))
                self.pool = pool or f"pool of {kind}"

            def __call__(self, images):
                return f"{kind} of {len(images)}"

        return Graph

    monkeypatch.setattr(cuda_graphs, "_TrainingStep", stand_in("training"))
    monkeypatch.setattr(cuda_graphs, "_Inference", stand_in("inference"))
    return recorded


def answers(model, sizes):
    found = [model(torch.zeros(size, 2)) for size in sizes]
    return [f"usual of {len(answer)}" if isinstance(answer, torch.Tensor) else answer for answer in found]


def test_a_size_is_recorded_when_it_comes_again_that_of_an_epochs_last_batch_too(recorded):
    model = GraphedModel(nn.Identity())
    of_32, of_28 = "training of 32", "training of 28"
    assert answers(model, [32, 32, 28]) == ["usual of 32", of_32, "usual of 28"]
    assert answers(model, [32, 32, 28]) == [of_32, of_32, of_28]
    assert recorded == [("training", 32, None), ("training", 28, "pool of training")]


def test_no_third_size_is_recorded(recorded):
    model = GraphedModel(nn.Identity())
    assert answers(model, [4, 4, 3, 3, 2, 2, 2])[-3:] == ["usual of 2"] * 3
    assert [size for _, size, _ in recorded] == [4, 3]


def test_inference_has_graphs_and_memory_of_its_own(recorded):
    model = GraphedModel(nn.Identity())
    answers(model, [4, 4])
    with torch.inference_mode():
        assert answers(model.eval(), [4, 4]) == ["usual of 4", "inference of 4"]
    assert recorded == [("training", 4, None), ("inference", 4, None)]


def test_a_network_that_was_made_ready_to_predict_needs_no_second_call_of_eval(recorded):
    model = GraphedModel(nn.Identity().eval())
    with torch.inference_mode():
        assert answers(model, [4, 4])[1] == "inference of 4"


def test_threads_take_turns(monkeypatch):
    """A graph has one place for its images and one for its answer."""

    class Graph:
        pool = None

        def __init__(self, module, images, pool):
            self.images = None

        def __call__(self, images):
            self.images = images
            time.sleep(0.01)
            return self.images.clone()

    monkeypatch.setattr(cuda_graphs, "_Inference", Graph)
    model = GraphedModel(nn.Identity().eval())

    def predict(number):
        with torch.inference_mode():
            return model(torch.full((1,), number)).item()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predict, range(12))) == list(range(12))


def test_gradients_in_evaluation_mode_and_none_in_training_mode_run_as_usual(recorded):
    model = GraphedModel(nn.Identity())
    assert answers(model.eval(), [4, 4]) == ["usual of 4"] * 2
    with torch.no_grad():
        assert answers(model.train(), [4, 4]) == ["usual of 4"] * 2
    assert recorded == []


# ---- when a graph would hide the user's code


def test_hooks_of_any_module_are_called_also_those_registered_later(recorded, caplog):
    network = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity()))
    model, seen = GraphedModel(network), []
    assert answers(model, [4, 4])[1] == "training of 4"
    for part, register in ((network[1][0], "register_forward_hook"), (network, "register_forward_pre_hook")):
        handle = getattr(part, register)(lambda *_, name=register: seen.append(name))
        with caplog.at_level("INFO", logger="vmunet"):
            assert answers(model, [4, 4]) == ["usual of 4"] * 2
        handle.remove()
        assert answers(model, [4]) == ["training of 4"]
    assert seen == ["register_forward_hook"] * 2 + ["register_forward_pre_hook"] * 2
    assert caplog.text.count("without CUDA graphs") == 1


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_are_called(recorded, register):
    model = GraphedModel(nn.Sequential(nn.Linear(2, 2)))
    assert model.why_not() is None
    handle = getattr(model.module[0], register)(lambda *_: None)
    assert "hooks" in model.why_not() and answers(model, [4, 4]) == ["usual of 4"] * 2
    handle.remove()
    assert model.why_not() is None


def test_under_a_debugger_the_modules_code_runs(recorded):
    model, before = GraphedModel(nn.Identity()), sys.gettrace()
    answers(model, [4, 4])
    sys.settrace(lambda *_: None)
    try:
        found = answers(model, [4])
    finally:
        sys.settrace(before)
    assert found == ["usual of 4"] and answers(model, [4]) == ["training of 4"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12")
def test_a_debugger_of_sys_monitoring_counts_too():
    assert not cuda_graphs.under_debugger()
    sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, "test")
    try:
        assert cuda_graphs.under_debugger()
    finally:
        sys.monitoring.free_tool_id(sys.monitoring.DEBUGGER_ID)
    assert not cuda_graphs.under_debugger()


# ---- recording


def test_recording_sees_the_values_of_the_parameters_but_not_the_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1)))
    model[0].bias.requires_grad_(False)
    own = dict(model.named_parameters())
    images = torch.ones(1, 2)
    held = model(images).sum()  # as a caller holds the loss of a step
    expected = torch.autograd.grad(model(images).sum(), [p for p in own.values() if p.requires_grad])
    with cuda_graphs._other_leaves(model) as leaves:
        used = dict(model.named_parameters())
        found = torch.autograd.grad(model(images).sum(), leaves)
    assert list(used) == list(own)
    assert all((used[name] is own[name]) == (name == "0.bias") for name in own)
    assert all(used[name].data_ptr() == own[name].data_ptr() for name in own)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert all(after is own[name] for name, after in model.named_parameters())
    held.backward()
    assert own["0.weight"].grad is not None and all(leaf.grad is None for leaf in leaves)
