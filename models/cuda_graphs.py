"""CUDA graphs: the network's thousand kernels launched at once, because launching them one by one takes the CPU longer
than the GPU needs to run them."""

import contextlib
import logging

import torch
from torch import Tensor, nn

log = logging.getLogger("vmunet")
WARM_UP = 3  # calls before recording, in which libraries choose and load their kernels


class GraphedModel(nn.Module):
    """Calls `module` through CUDA graphs: one for forward and backward in training, one for inference.

    Each is recorded at the first batch, whose shape is taken to be the usual one; batches of other shapes, such as the
    last of an epoch, run as without graphs. Results are the same to the bit. The gradients of a training step are valid
    until the next one, so they can't be accumulated over steps. Weights may change in place only, as optimizers and
    load_state_dict do."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.training_step: _TrainingStep | None = None
        self.inference: _Inference | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.training != torch.is_grad_enabled():
            return self.module(images)  # neither a step of training nor inference
        if self.training:
            if self.training_step is None:
                self.training_step = _TrainingStep(self.module, images)
            if images.shape == self.training_step.images.shape:
                return _Replay.apply(self.training_step, images, *self.training_step.parameters)
        else:
            if self.inference is None:
                self.inference = _Inference(self.module, images)
            if images.shape == self.inference.images.shape:
                return self.inference(images)
        return self.module(images)


class _TrainingStep:
    """Forward and backward as two graphs over one pool of memory."""

    def __init__(self, module, images):
        self.images = images.clone()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        # the run must not notice: recording draws random numbers, warming up moves the averages of BatchNorm
        state = torch.cuda.get_rng_state(images.device)
        averages = [buffer.clone() for buffer in module.buffers()]
        with _autocast_without_cache():
            with _warm_up_stream(images.device):
                for _ in range(WARM_UP):
                    out = module(self.images)
                    torch.autograd.grad(out, self.parameters, torch.ones_like(out))
                    del out
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with _record(self.forward):
                out = module(self.images)
            self.grad = torch.zeros_like(out)
            with _record(self.backward, self.forward.pool()):
                self.grads = torch.autograd.grad(out, self.parameters, self.grad)
        self.out = out.detach()
        torch.cuda.set_rng_state(state, images.device)
        for buffer, kept in zip(module.buffers(), averages, strict=True):
            buffer.copy_(kept)
        log.info("training steps with images %s run as CUDA graphs", tuple(images.shape))


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
    def __init__(self, module, images):
        self.images = images.clone()
        with _autocast_without_cache():
            with _warm_up_stream(images.device):
                for _ in range(WARM_UP):
                    module(self.images)
            self.graph = torch.cuda.CUDAGraph()
            with _record(self.graph):
                self.out = module(self.images)

    def __call__(self, images):
        self.images.copy_(images)
        self.graph.replay()
        return self.out.clone()


def _record(graph, pool=None):
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
