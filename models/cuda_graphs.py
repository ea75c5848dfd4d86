"""CUDA graphs: launch the network's thousand kernels at once, because launching them one by one takes the CPU longer
than the GPU needs to run them."""

import contextlib
import logging
import sys
import threading

import torch
from torch import Tensor, nn

from .cross_scan.operator import once_differentiable, transformed
from .shared_batch import whole_batch

log = logging.getLogger("vmunet")
SHAPES = 2  # of batches, for which graphs are recorded
WARM_UP = 3  # calls before recording, in which libraries choose and load their kernels


def under_debugger() -> bool:
    """Return whether a debugger traces this thread, or has registered itself."""
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    registered = monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None
    return registered or sys.gettrace() is not None


class GraphedModel(nn.Module):
    """Calls `module` through CUDA graphs: one for forward and backward in training, one for inference.

    Graphs are recorded for SHAPES shapes of batches, each at its second batch: the usual shape, and that of the smaller
    last batch of an epoch. Other batches run without graphs. Results are the same to the bit, under autocast those
    without its cache (cache_enabled=False). The gradients of a training step are valid until the next one, and can't be
    accumulated over steps. Weights may change in place only, as optimizers and load_state_dict do.

    Replaying a graph executes none of the module's Python code. So no graph is used under a debugger, nor while a hook
    is registered on a module of the network."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.training_steps = _GraphsByShape(_TrainingStep, module)
        self.inferences = _GraphsByShape(_Inference, module)
        self.lock = threading.Lock()  # threads, which must use one stream, share the memory of the graphs
        self.hooks = [  # of all modules, in tables that stay the same objects
            table
            for part in module.modules()
            for table in (part._forward_pre_hooks, part._forward_hooks, part._backward_pre_hooks, part._backward_hooks)
        ]
        self.logged: set[str] = set()
        self.several_outputs = False  # which no graph records
        self.train(module.training)  # not nn.Module's own start, with which a network that predicts would train

    def forward(self, images: Tensor) -> Tensor:
        if self.training != torch.is_grad_enabled() or transformed():
            return self.module(images)  # neither a step of training nor inference
        reason = self.why_not()
        if reason is not None:
            if reason not in self.logged:
                log.info("running without CUDA graphs: %s", reason)
            self.logged.add(reason)
            return self.module(images)
        graphs = self.training_steps if self.training else self.inferences
        with self.lock:
            graph = graphs.find(images)
            if graph is not None:
                return graph(images)
        outputs = self.module(images)
        self.several_outputs = not isinstance(outputs, Tensor)
        return outputs

    def why_not(self) -> str | None:
        """Return None if the module may run as graphs, otherwise the reason."""
        if under_debugger():
            return "a debugger is attached"
        if self.several_outputs:
            return "the network has several outputs"
        return "a module of the network has hooks" if any(self.hooks) else None


class _GraphsByShape:
    """The graphs of one kind, recorded for SHAPES shapes of batches, over one pool of memory: they run one after the
    other, and the results of one are read before the next runs."""

    def __init__(self, record, module):
        self.record, self.module, self.pool = record, module, None
        self.recorded: dict = {}
        self.seen: set = set()

    def find(self, images):
        """Return the graph for images of this shape, or None."""
        shape = images.shape, whole_batch(len(images))[0]  # DropPath draws for the whole batch of several processes
        if shape in self.seen and shape not in self.recorded and len(self.recorded) < SHAPES:
            self.recorded[shape] = self.record(self.module, images, self.pool)
            self.pool = self.recorded[shape].pool
        self.seen.add(shape)
        return self.recorded.get(shape)


class _TrainingStep:
    """Forward and backward as two graphs over one pool of memory."""

    def __init__(self, module, images, pool):
        self.images = images.clone()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        with _other_leaves(module) as leaves:
            self._capture(module, leaves, pool)
        log.info("training steps with images %s run as CUDA graphs", tuple(images.shape))

    def _capture(self, module, leaves, pool):
        # restored below: recording draws random numbers, warming up moves the averages of BatchNorm
        device = self.images.device
        state = torch.cuda.get_rng_state(device)
        averages = [buffer.clone() for buffer in module.buffers()]
        with _autocast_without_cache():
            with _warm_up_stream(device):
                for _ in range(WARM_UP):
                    out = module(self.images)
                    torch.autograd.grad(out, leaves, torch.ones_like(out))
                    del out
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with _record(self.forward, pool):
                out = module(self.images)
            self.pool = self.forward.pool()
            self.grad = torch.zeros_like(out)
            with _record(self.backward, self.pool):
                self.grads = torch.autograd.grad(out, leaves, self.grad)
        self.out = out.detach()
        torch.cuda.set_rng_state(state, device)
        for buffer, kept in zip(module.buffers(), averages, strict=True):
            buffer.copy_(kept)

    def __call__(self, images):
        return _Replay.apply(self, images, *self.parameters)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, step, images, *parameters):
        ctx.step = step
        step.images.copy_(images)
        step.forward.replay()
        return step.out.detach()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # for a second derivative
            once_differentiable()
        ctx.step.grad.copy_(grad)
        ctx.step.backward.replay()
        return None, None, *(grad.detach() for grad in ctx.step.grads)


class _Inference:
    def __init__(self, module, images, pool):
        self.images = images.clone()
        with _autocast_without_cache():
            with _warm_up_stream(images.device):
                for _ in range(WARM_UP):
                    module(self.images)
            self.graph = torch.cuda.CUDAGraph()
            with _record(self.graph, pool):
                self.out = module(self.images)
        self.pool = self.graph.pool()

    def __call__(self, images):
        self.images.copy_(images)
        self.graph.replay()
        return self.out.clone()


@contextlib.contextmanager
def _other_leaves(module):
    """Within the block, replace the module's parameters by others in the same memory; yield those with gradients.

    While a caller holds the loss of the step before, gradients of the module's own parameters would be accumulated in
    that step's stream, which can't be waited for while another stream is recorded."""
    own = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    places = [(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name, _ in own]
    leaves = [nn.Parameter(p.detach()) for _, p in own]
    try:
        for (owner, leaf), parameter in zip(places, leaves, strict=True):
            setattr(owner, leaf, parameter)
        yield leaves
    finally:
        for (owner, leaf), (_, parameter) in zip(places, own, strict=True):
            setattr(owner, leaf, parameter)


def _record(graph, pool):
    # "thread_local": the loader's thread may pin memory meanwhile
    return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")


@contextlib.contextmanager
def _warm_up_stream(device):
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


def _autocast_without_cache():
    """Return the current autocast without its cache of rounded weights: a graph must round them in every step."""
    enabled = torch.is_autocast_enabled("cuda")
    return torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=enabled, cache_enabled=False)
