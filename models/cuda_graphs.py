"""CUDA graphs: the network's thousand kernels launched at once, because launching them one by one takes the CPU longer
than the GPU needs to run them."""

import contextlib
import logging
import threading

import torch
from torch import Tensor, nn

log = logging.getLogger("vmunet")
SHAPES = 2  # of batches, for which graphs are recorded
WARM_UP = 3  # calls before recording, in which libraries choose and load their kernels


class GraphedModel(nn.Module):
    """Calls `module` through CUDA graphs: one for forward and backward in training, one for inference.

    They are recorded for SHAPES shapes of batches, when they come for the second time: the usual one, and that of the
    smaller last batch of an epoch. Other batches run as without graphs. Results are the same to the bit, under autocast
    those without its cache (cache_enabled=False). The gradients of a training step are valid until the next one, so
    they can't be accumulated over steps. Weights may change in place only, as optimizers and load_state_dict do."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.training_steps = _OfShapes(_TrainingStep, module)
        self.inferences = _OfShapes(_Inference, module)
        self.lock = threading.Lock()  # threads, which must use one stream, share the memory of the graphs
        self.train(module.training)  # not nn.Module's own start, with which a network that predicts would train

    def forward(self, images: Tensor) -> Tensor:
        if self.training != torch.is_grad_enabled():
            return self.module(images)  # neither a step of training nor inference
        graphs = self.training_steps if self.training else self.inferences
        with self.lock:
            graph = graphs.of(images)
            if graph is not None:
                return graph(images)
        return self.module(images)


class _OfShapes:
    """The graphs of one kind, recorded for SHAPES shapes of batches, over one pool of memory: they run one after the
    other, and what one leaves in it is read before the next."""

    def __init__(self, record, module):
        self.record, self.module, self.pool = record, module, None
        self.recorded: dict = {}
        self.seen: set = set()

    def of(self, images):
        """The graph for images of this shape; None if there is none."""
        shape = images.shape
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
        # the run must not notice: recording draws random numbers, warming up moves the averages of BatchNorm
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
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
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
    """Lets the module use other parameters in the memory of its own; yields those that have gradients.

    While a caller holds the loss of the step before, gradients of the module's own parameters would be handed to that
    step's stream, which can't be waited for while another stream is recorded."""
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
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        yield
    here.wait_stream(aside)


def _autocast_without_cache():
    """The autocast around, without its cache of rounded weights: a graph must round them anew in every step."""
    enabled = torch.is_autocast_enabled("cuda")
    return torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=enabled, cache_enabled=False)
