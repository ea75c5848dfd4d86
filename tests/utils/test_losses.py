import functools
import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from configs.config_setting import ISICConfig
from configs.config_setting_synapse import SynapseConfig
from configs.resolve import resolve
from datasets.loaders import EpochBatchSampler
from engine import Compute, evaluate, train_one_epoch
from tests.ranks import run_in_two_processes
from utils import distributed, losses
from utils.losses import (
    BceDiceLoss,
    BceDiceWithLogitsLoss,
    BCELoss,
    CeDiceLoss,
    DiceLoss,
    GT_BceDiceLoss,
    bce_dice,
    build_loss,
    ce_dice,
    find_losses,
    nDiceLoss,
)
from utils.runs.batches import Batches


@pytest.fixture
def golden(shared, monkeypatch):
    """The original's losses, and the inputs they were taken from."""
    monkeypatch.syspath_prepend(str(shared / "oracle"))
    import detgen

    def draw(name, *shape):
        return torch.from_numpy(detgen.uniform(name, 288)).reshape(shape) * 0.98 + 0.01

    def stack(make, *size):
        return torch.stack([torch.from_numpy(make(f"loss/{i}", *size)) for i in range(3)])

    logits = torch.from_numpy(detgen.normal("loss/logits", 3 * 9 * 8 * 12)).reshape(3, 9, 8, 12) * 2
    inputs = dict(
        prob=draw("loss/pred", 3, 1, 8, 12),
        mask=stack(detgen.mask, 8, 12)[:, None],
        logits=logits,
        labels=stack(detgen.labels, 8, 12),
        side=tuple(draw(f"loss/gt{k}", 3, 1, 8, 12) for k in (5, 4, 3, 2, 1)),
    )
    yield inputs, json.loads((shared / "oracle/golden/losses_metrics.json").read_text(encoding="utf-8"))["losses"]
    sys.modules.pop("detgen")


@pytest.mark.parametrize("dtype, key, tolerance", [(torch.float64, "f64", 1e-12), (torch.float32, "f32", 1e-6)])
def test_losses_equal_the_originals(golden, dtype, key, tolerance):
    inputs, expected = golden
    prob, mask, logits = (inputs[name].to(dtype) for name in ("prob", "mask", "logits"))
    side, labels = tuple(p.to(dtype) for p in inputs["side"]), inputs["labels"]
    nothing, everything = torch.zeros_like(mask), torch.ones_like(mask)
    got = {
        "BCE": BCELoss()(prob, mask),
        "Dice": DiceLoss()(prob, mask),
        "BceDice_1_1": BceDiceLoss(1, 1)(prob, mask),
        "BceDice_wb0.3_wd0.7": BceDiceLoss(wb=0.3, wd=0.7)(prob, mask),
        "nDice_softmax": nDiceLoss(9)(logits, labels, softmax=True),
        "nDice_nosoftmax_on_softmaxed": nDiceLoss(9)(logits.softmax(1), labels),
        "nDice_weighted_0..8": nDiceLoss(9)(logits, labels, weight=list(range(9)), softmax=True),
        "CeDice_1_1": CeDiceLoss(9, [1, 1])(logits, labels),
        "CeDice_default_0.4_0.6": CeDiceLoss(9)(logits, labels),
        "CeDice_float_target": CeDiceLoss(9, [1, 1])(logits, labels.to(dtype)),
        "CE": CeDiceLoss(9, [1, 0])(logits, labels),
        "GT_BceDice_1_1": GT_BceDiceLoss(1, 1)(side, prob, mask),
        "Dice_empty_target_zero_pred": DiceLoss()(nothing, nothing),
        "Dice_empty_target_pred": DiceLoss()(prob, nothing),
        "BCE_pred_exact_0_1": BCELoss()(everything, nothing),
        "BceDice_perfect": BceDiceLoss()(mask, mask),
        "CeDice_label_missing_class": CeDiceLoss(9, [1, 1])(logits, torch.zeros_like(labels)),
    }
    for name, loss in got.items():
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(expected[key][name], rel=tolerance, abs=tolerance), name
    assert got.keys() == expected[key].keys()


def test_logits_give_the_loss_and_gradient_of_their_probabilities():
    logits = torch.randn(3, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 1, 5, 7, dtype=torch.float64)
    from_logits = BceDiceWithLogitsLoss(0.3, 0.7)(logits, mask)
    from_prob = BceDiceLoss(0.3, 0.7)(logits.sigmoid(), mask)
    torch.testing.assert_close(from_logits, from_prob)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (from_logits, from_prob)))


def test_confidently_wrong_logits_still_have_a_gradient():
    logits = torch.full((1, 1, 2, 2), 60.0, requires_grad=True)
    BceDiceWithLogitsLoss()(logits, torch.zeros(1, 1, 2, 2)).backward()
    assert (logits.grad > 0.2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_16_bit_logits_are_computed_in_float32(dtype):
    """A 400x400 image sums to more than float16 can hold."""
    logits, mask = torch.randn(1, 1, 400, 400).to(dtype), torch.ones(1, 1, 400, 400)
    loss = BceDiceWithLogitsLoss()(logits, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, BceDiceWithLogitsLoss()(logits.float(), mask))
    logits, labels = torch.randn(1, 3, 400, 400).to(dtype), torch.randint(3, (1, 400, 400))
    with torch.autocast("cpu", torch.bfloat16):
        loss = CeDiceLoss(3)(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, CeDiceLoss(3)(logits.float(), labels))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\).*\(2, 4, 4\)"):
        BceDiceWithLogitsLoss()(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\).*\(2, 2, 4, 4\)"):
        nDiceLoss(3)(torch.zeros(2, 2, 4, 4), torch.zeros(2, 4, 4))


# ---- the choice of a config


def mean_error(logits, target):
    """A loss of a user's own."""
    return (logits.softmax(1)[:, 1] - target).abs().mean()


def test_a_config_chooses_a_function_by_its_name(monkeypatch):
    assert find_losses() == {"bce_dice": bce_dice, "ce_dice": ce_dice, "focal": losses.focal}
    monkeypatch.setattr(losses, "mean_error", mean_error, raising=False)
    assert build_loss(ISICConfig(loss="mean_error")) is mean_error


@pytest.mark.parametrize(
    "config, published",
    [
        (ISICConfig(loss_weight=(0.3, 0.7)), BceDiceWithLogitsLoss(0.3, 0.7)),
        (ISICConfig(num_classes=4, loss_weight=(0.3, 0.7)), CeDiceLoss(4, (0.3, 0.7))),
        (SynapseConfig(num_classes=4), CeDiceLoss(4, (1, 1))),
        (SynapseConfig(num_classes=1), BceDiceWithLogitsLoss()),
    ],
)
def test_auto_is_the_published_loss_of_the_number_of_classes(config, published):
    classes = config.num_classes
    logits = torch.randn(2, classes, 6, 6)
    target = torch.rand(2, 1, 6, 6).round() if classes == 1 else torch.randint(classes, (2, 6, 6))
    assert torch.equal(build_loss(config)(logits, target), published(logits, target))
    name = "bce_dice" if classes == 1 else "ce_dice"
    assert torch.equal(find_losses()[name](logits, target, config.loss_weight), build_loss(config)(logits, target))


# ---- several processes


def cross_entropy(logits, target):
    return F.cross_entropy(logits, target)


def branching(logits, target):
    """A loss whose course depends on the numbers of the batch, and whose images don't simply add up."""
    if target.sum() == 0:
        return logits.square().mean()
    return logits.softmax(1)[:, 1].max() * cross_entropy(logits, target) + logits.std()


CRITERIA = {
    "binary": BceDiceWithLogitsLoss(),
    "classes": CeDiceLoss(4, [1, 1]),
    "any function": cross_entropy,
    "branch": branching,
    "other branch": branching,
}


def make_step(kind):
    """A small model and one batch of five images."""
    generator = torch.Generator().manual_seed(0)
    classes = 1 if kind == "binary" else 4
    model = torch.nn.Conv2d(3, classes, 3, padding=1).double()
    model.load_state_dict({n: torch.randn(p.shape, generator=generator) for n, p in model.state_dict().items()})
    images = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)
    if kind == "binary":
        return model, images, (torch.rand(5, 1, 6, 6, generator=generator) > 0.7).double()
    targets = torch.randint(classes, (5, 6, 6), generator=generator)
    return model, images, torch.zeros_like(targets) if kind == "other branch" else targets


class OnShares(torch.nn.Module):
    """In one process: each rank's share of a batch goes through the network by itself, as BatchNorm sees it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        parts = {rank: self.network(images[rank::2]) for rank in range(2)}
        return torch.stack([parts[i % 2][i // 2] for i in range(len(images))])


class Images:
    """Thirteen images whose brighter half is foreground."""

    def __init__(self):
        self.images = torch.randn(13, 3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        _, index = place
        return self.images[index], (self.images[index, :1] > 0.5).double(), f"{index:02}"


def train_an_epoch(wrap, rank=0, world_size=1):
    """Batches of 5, 5 and 3 images, two for each step, through a network with BatchNorm; then an evaluation.

    Returns the mean losses of both, and the state of the network before and after the evaluation."""
    generator = torch.Generator().manual_seed(1)
    conv, out = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False), torch.nn.Conv2d(4, 1, 1)
    network = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(4), torch.nn.ReLU(), out).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, generator=generator)
    sampler = EpochBatchSampler(13, 5, seed=3, shuffle=True, rank=rank, world_size=world_size)
    loader = DataLoader(Images(), batch_sampler=sampler)
    model, optimizer = wrap(network), torch.optim.SGD(network.parameters(), lr=0.1)
    compute, criterion = Compute(torch.device("cpu")), BceDiceWithLogitsLoss()
    batches = Batches(loader)
    loss = train_one_epoch(model, batches, optimizer, criterion, compute, accumulation_steps=2, clip_grad_norm=0.5)
    assert batches.done == 3
    trained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scores, _ = evaluate(model, loader, criterion, compute)
    return [loss, scores["loss"]], trained, network.state_dict()


def train_on_share(rank, folder):
    """Rank 0 holds three of the five images, rank 1 two."""
    results = {}
    for kind, criterion in CRITERIA.items():
        model, images, targets = make_step(kind)
        loss = criterion(*distributed.gather_batch((model(images[rank::2]), targets[rank::2]), [3, 2]))
        loss.backward()
        distributed.all_reduce_gradients(model)
        results[kind] = loss.detach(), [p.grad for p in model.parameters()]
    _, images, targets = make_step("any function")
    results["list"] = distributed.gather_batch([images[rank::2], targets[rank::2]], [3, 2])
    results["epoch"] = train_an_epoch(lambda network: network, rank, world_size=2)
    torch.save(results, f"{folder}/rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_in_two_processes(train_on_share, folder)
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.parametrize("kind", CRITERIA)
def test_two_processes_with_uneven_shares_give_one_process_loss_and_gradient(kind, ranks):
    """Whatever function of logits and target the loss is."""
    model, images, targets = make_step(kind)
    loss = CRITERIA[kind](model(images), targets)
    loss.backward()
    for results in ranks:
        reported, grads = results[kind]
        torch.testing.assert_close(reported, loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(grads, [p.grad for p in model.parameters()], rtol=1e-10, atol=1e-14)


def test_each_rank_gets_the_whole_batch_of_several_outputs(ranks):
    _, images, targets = make_step("any function")
    order = [0, 2, 4, 1, 3]
    for results in ranks:
        assert torch.equal(results["list"][0], images[order]) and torch.equal(results["list"][1], targets[order])
    assert distributed.gather_batch([images, targets], [5])[0] is images  # one process alone


def test_two_processes_train_a_network_with_batch_norm_like_one(ranks):
    """Their averages of BatchNorm, each from its own images, become the main process's when it is evaluated."""
    losses, weights, _ = train_an_epoch(OnShares)
    (main_losses, main_trained, main), (other_losses, other_trained, other) = (rank["epoch"] for rank in ranks)
    assert main_losses == other_losses
    assert main_losses[0] == pytest.approx(losses[0], rel=1e-12)
    for name, tensor in main.items():
        assert torch.equal(tensor, other[name]) and torch.equal(tensor, main_trained[name]), name
        if "running" in name:
            assert not torch.equal(main_trained[name], other_trained[name])
        elif "num_batches" not in name:
            torch.testing.assert_close(tensor, weights[name], rtol=1e-10, atol=1e-14)


# ---- class weights, an ignored label, focal loss


@pytest.fixture
def pixels():
    torch.manual_seed(0)
    return torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(0, 3, (2, 4, 5))


def test_class_weights_and_an_ignored_label_are_those_of_the_cross_entropy(pixels):
    logits, target = pixels
    target[0, :2], target[1, 0] = 255, 255
    weights, options = torch.tensor([1.0, 2.0, 5.0]), dict(class_weights=(1, 2, 5), ignore_label=255)
    expected = F.cross_entropy(logits, target, weight=weights, ignore_index=255)
    torch.testing.assert_close(ce_dice(logits, target, (1, 0), **options), expected)
    torch.testing.assert_close(losses.focal(logits, target, focal_gamma=0, **options), expected)
    for loss in (functools.partial(ce_dice, **options), functools.partial(losses.focal, **options)):
        (gradient,) = torch.autograd.grad(loss(logits, target), logits)
        assert (gradient.permute(0, 2, 3, 1)[target == 255] == 0).all() and gradient.isfinite().all()
    nothing = torch.full_like(target, 255)
    assert losses.focal(logits, nothing, ignore_label=255) == 0 and ce_dice(logits, nothing, **options).isfinite()


def test_the_dice_of_the_pixels_that_count(pixels):
    logits, target = pixels
    part = ce_dice(logits[:, :, 1:], target[:, 1:], (0, 1))  # without the first row
    target[:, 0] = 7
    torch.testing.assert_close(ce_dice(logits, target, (0, 1), ignore_label=7), part)
    torch.testing.assert_close(ce_dice(logits, target, (0, 1), (2, 2, 2), ignore_label=7), part)


def test_focal_by_hand_and_binary_class_weights():
    logits, target = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    wrong = [0.5, torch.sigmoid(torch.tensor(2.0)).item()]  # the probability of the wrong class
    each = [-(w**2) * math.log(1 - w) for w in wrong]
    assert losses.focal(logits, target).item() == pytest.approx(sum(each) / 2)
    assert losses.focal(logits, target, class_weights=(1, 3)).item() == pytest.approx((3 * each[0] + each[1]) / 4)
    bce = [-math.log(1 - w) for w in wrong]
    assert bce_dice(logits, target, (1, 0), (1, 3)).item() == pytest.approx((3 * bce[0] + bce[1]) / 4)
    torch.testing.assert_close(bce_dice(logits, target, (1, 1), (2, 2)), bce_dice(logits, target))


@pytest.mark.parametrize(
    "flags, found",
    [
        ("--class-weights 1", "--class-weights.* 2 "),
        ("--class-weights 1 2 3 --num-classes 2", "--class-weights.* 2 "),
        ("--class-weights 0 0", "--class-weights"),
        ("--class-weights -1 1", "--class-weights.*-1"),
        ("--ignore-label 255", "--ignore-label.*255.*--num-classes"),
        ("--ignore-label 2 --num-classes 3", "--ignore-label.*2"),
        ("--ignore-label 300 --num-classes 3", "--ignore-label.*300.*255"),
        ("--early-stopping 0", "--early-stopping.*0"),
        ("--loss focl", "--loss.*focl.*focal"),
    ],
)
def test_wrong_values_are_named(flags, found):
    with pytest.raises(ValueError, match=found):
        resolve(ISICConfig, flags.split())


def test_a_loss_that_does_not_take_an_option_is_an_error(monkeypatch):
    monkeypatch.setattr(losses, "mine", lambda logits, target: logits.mean(), raising=False)
    losses.mine.__name__ = "mine"
    with pytest.raises(ValueError, match="--class-weights.*mine.*ce_dice"):
        resolve(ISICConfig, "--loss mine --class-weights 1 2".split())
