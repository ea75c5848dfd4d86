"""One epoch of training, and an evaluation: what a step does with a loss, and what an evaluation keeps."""

import contextlib
import weakref

import pytest
import torch

from engine import Compute, evaluate, train_one_epoch
from utils.distributed import AsyncScalar
from utils.errors import NonFiniteLossError
from utils.losses import BceDiceWithLogitsLoss
from utils.runs.batches import Batches


def test_a_loss_that_is_not_finite_names_the_batch_and_leaves_the_weights():
    model = torch.nn.Conv2d(1, 1, 1)
    before = [p.clone() for p in model.parameters()]
    good, bad = torch.rand(2, 1, 4, 4), torch.full((2, 1, 4, 4), float("nan"))
    loader = [(bad, (good > 0.5).float(), ["ISIC_1", "ISIC_2"])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compute = Compute(torch.device("cpu"))
    with pytest.raises(NonFiniteLossError, match=r"nan.*\b1\b.*ISIC_1, ISIC_2"):
        train_one_epoch(model, Batches(loader), optimizer, BceDiceWithLogitsLoss(), compute)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


class InfiniteGradient(torch.autograd.Function):
    """The identity, whose gradient is infinite where an image is all ones."""

    @staticmethod
    def forward(ctx, images, weight):
        ctx.bad = bool((images == 1).all((1, 2, 3)).any())
        return images * weight

    @staticmethod
    def backward(ctx, grad):
        return None, torch.full((1,), float("inf") if ctx.bad else 0.1)


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        return InfiniteGradient.apply(images, self.weight)


@pytest.mark.parametrize("bad", [0, 2])  # the first batch, and the last of the epoch
@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 1.0}, {"accumulation_steps": 2}])
def test_a_gradient_that_is_not_finite_names_its_batch_and_leaves_the_weights(bad, options):
    images = [torch.full((1, 1, 2, 2), 0.5) for _ in range(3)]
    images[bad] = torch.ones(1, 1, 2, 2)
    loader = [(image, image, [f"image{i}"]) for i, image in enumerate(images)]
    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    compute, batches = Compute(torch.device("cpu")), Batches(loader, epoch=7)
    with pytest.raises(NonFiniteLossError, match=rf"inf.*epoch 7.*image{bad}"):
        train_one_epoch(model, batches, optimizer, lambda x, y: x.mean(), compute, **options)
    assert model.weight.isfinite().all()


def test_fp16_skips_a_step_and_ends_where_every_step_is_skipped():
    good, bad = torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2)
    for images, finite in (([bad, good, good], True), ([bad] * 45, False)):
        model, compute = Scaled(), Compute(torch.device("cpu"), "fp16")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = Batches([(image, image, ["a"]) for image in images])
        with contextlib.nullcontext() if finite else pytest.raises(NonFiniteLossError, match="fp16"):
            train_one_epoch(model, batches, optimizer, lambda x, y: x.mean(), compute)
        assert model.weight.isfinite().all() and (model.weight.item() != 1) is finite


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    def step(batches, accumulation_steps):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(1, 1, 3, padding=1)
        compute = Compute(torch.device("cpu"))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train_one_epoch(model, Batches(batches), optimizer, BceDiceWithLogitsLoss(), compute, accumulation_steps)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    images, names = torch.rand(6, 1, 8, 8), [str(i) for i in range(6)]
    masks = (images > 0.5).float()
    parts = [(images[i : i + 2], masks[i : i + 2], names[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(step(parts, 3), step([(images, masks, names)], 1))
    # an incomplete group at the end is averaged over what it has
    torch.testing.assert_close(step(parts[:1], 3), step(parts[:1], 1))


def test_clipping_bounds_the_step():
    model = torch.nn.Conv2d(1, 1, 1)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    images = torch.rand(2, 1, 4, 4)
    batches, optimizer = Batches([(images, images, ["a", "b"])]), torch.optim.SGD(model.parameters(), lr=1.0)
    compute = Compute(torch.device("cpu"))
    train_one_epoch(model, batches, optimizer, BceDiceWithLogitsLoss(), compute, clip_grad_norm=1e-3)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert 0 < (after - before).norm().item() <= 1.001e-3


def test_gradients_of_a_weight_that_is_used_twice_are_added_in_float32():
    weight = torch.nn.Parameter(torch.rand(8, 8))
    one, two = torch.rand(2, 5, 8)

    def gradient(*inputs):
        with Compute(torch.device("cpu"), "bf16").autocast():
            total = sum(torch.nn.functional.linear(x, weight).float().sum() for x in inputs)
        return torch.autograd.grad(total, weight)[0]

    assert torch.equal(gradient(one, two), gradient(one) + gradient(two))
    assert not torch.equal(gradient(one, two), gradient(one, two).bfloat16().float())


def test_on_a_cpu_batches_are_handed_on_as_they_are():
    parts = [(torch.rand(2, 1), torch.rand(2, 1), ["a", "b"]), (torch.rand(1, 1), torch.rand(1, 1), ["c"])]
    handed = list(Compute(torch.device("cpu")).prefetch(iter(parts)))
    for batch, part in zip(handed, parts, strict=True):
        assert all(ours is theirs for ours, theirs in zip(batch, part, strict=True))


def test_an_asynchronous_number_is_the_number():
    loss = torch.tensor(0.25, requires_grad=True) * 3
    assert AsyncScalar(loss).item() == 0.75


# ---- losses that a user writes


class TwoOutputs(torch.nn.Module):
    """A network with deep supervision: logits of two depths."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, images):
        return [self.first(images), self.second(images)]


def test_the_losses_of_several_outputs_are_added_and_the_first_is_evaluated():
    torch.manual_seed(0)
    model, criterion, compute = TwoOutputs(), BceDiceWithLogitsLoss(), Compute(torch.device("cpu"))
    images = torch.rand(3, 1, 8, 8)
    masks, names = (images > 0.5).float(), list("abc")
    expected = sum(criterion(conv(images), masks) for conv in (model.first, model.second))
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss = train_one_epoch(model, Batches([(images, masks, names)]), optimizer, criterion, compute)
    assert loss == pytest.approx(expected.item())
    for parameter, start, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), start - gradient)

    scores, counts = evaluate(model, [(images, masks, names)], criterion, compute)
    alone, counts_alone = evaluate(model.first, [(images, masks, names)], criterion, compute)
    assert scores == alone
    assert all(torch.equal(one[1], other[1]) for one, other in zip(counts, counts_alone, strict=True))


def branching(logits, target):
    """A loss whose course depends on the values of a tensor."""
    if target.sum() == 0:
        return logits.sigmoid().mean()
    return 10 + (logits - target).square().mean()


def test_the_loss_of_an_evaluation_may_branch_on_a_tensor():
    """Each image takes the branch of its own mask; every image counts once, whatever the batches."""
    torch.manual_seed(0)
    images, masks, names = torch.rand(5, 1, 8, 8), torch.zeros(5, 1, 8, 8), list("abcde")
    masks[1:3, :, 2:4] = 1
    model, compute = torch.nn.Conv2d(1, 1, 1), Compute(torch.device("cpu"))
    with torch.no_grad():
        each = [branching(model(image[None]), mask[None]).item() for image, mask in zip(images, masks, strict=True)]
    for size in (1, 2, 5):
        parts = [(images[i : i + size], masks[i : i + size], names[i : i + size]) for i in range(0, 5, size)]
        scores, _ = evaluate(model, parts, branching, compute)
        assert scores["loss"] == pytest.approx(sum(each) / 5)
    assert [loss > 5 for loss in each] == [False, True, True, False, False]


# ---- evaluation


def test_validation_keeps_no_images():
    alive, most = weakref.WeakSet(), []

    def batches():
        for i in range(20):
            images = torch.rand(2, 1, 8, 8)
            alive.add(images)
            most.append(len(alive))
            yield images, (images > 0.5).float(), [f"{i} a", f"{i} b"]
            del images

    evaluate(torch.nn.Conv2d(1, 1, 1), batches(), BceDiceWithLogitsLoss(), Compute(torch.device("cpu")))
    assert max(most) <= 3
