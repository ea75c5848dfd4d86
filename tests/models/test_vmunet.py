"""The network: layout, numbers of the original, sizes, widths, options."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.vmunet import VMUNet
from models.vmunet.ss2d import SS2D
from models.vmunet.vmamba import PatchEmbed2D, PatchMerging2D, drop_path_rates, spread
from tests.tiny import GOLDEN, NETWORK, ROOT


def small(**changes):
    torch.manual_seed(0)
    return VMUNet(**NETWORK | changes)


def test_state_dict_has_the_originals_names_shapes_and_order():
    layout = json.loads((GOLDEN / "layout.json").read_text(encoding="utf-8"))["isic"]
    assert [[name, list(t.shape)] for name, t in VMUNet().state_dict().items()] == layout


def test_parameters_of_the_released_configurations():
    assert sum(p.numel() for p in VMUNet().parameters()) == 27_427_561
    assert sum(p.numel() for p in VMUNet(num_classes=9).parameters()) == 27_427_761


def test_drop_path_rates_rise_through_the_encoder_and_fall_through_the_decoder():
    model = small(depths=(2, 2, 2, 2), depths_decoder=(2, 2, 2, 1), drop_path_rate=0.2).vmunet
    encoder = [block.drop_path.drop_prob for layer in model.layers for block in layer.blocks]
    decoder = [block.drop_path.drop_prob for layer in model.layers_up for block in layer.blocks]
    assert encoder == pytest.approx([0.2 * i / 7 for i in range(8)])
    assert decoder == pytest.approx([0.2 * i / 6 for i in range(7)][::-1])
    assert drop_path_rates(0.3, [1, 3]) == [[0.0], pytest.approx([0.1, 0.2, 0.3])]


def test_ss2d_equals_the_original_with_its_gradients():
    golden = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / "ss2d.npz").items()}
    block = SS2D(32).double()
    block.load_state_dict({name[7:]: t for name, t in golden.items() if name.startswith("weight_")})
    x = golden["x"].requires_grad_()
    y = block(x)
    torch.testing.assert_close(y, golden["y"], rtol=1e-10, atol=1e-10)
    y.backward(golden["gy"])
    torch.testing.assert_close(x.grad, golden["gx"], rtol=1e-9, atol=1e-10)
    gradients = {name[5:]: t for name, t in golden.items() if name.startswith("grad_")}
    assert len(gradients) >= 10
    for name, expected in gradients.items():
        torch.testing.assert_close(block.get_parameter(name).grad, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_golden_numbers_of_the_whole_network(shared):
    judge = shared / "oracle" / "compare.py"
    command = [sys.executable, str(judge), "adapter:build", "--path", str(ROOT), "--path", str(judge.parent)]
    command += ["--quick", "--items", "1,2,3", "--f64", "require"]
    command += ["--loss", "utils.losses:BceDiceLoss,utils.losses:CeDiceLoss"]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ALL PASSED" in result.stdout


def test_initialisation():
    """As published: linear layers normal(0, 0.02), uniform projections, rates 1..16, log-uniform steps, skips of 1."""
    torch.manual_seed(42)
    model = VMUNet(num_classes=9)
    for name, p in model.named_parameters():
        if name.endswith(("in_proj.weight", "out_proj.weight", "reduction.weight", "expand.weight")):
            assert abs(p.mean()) < 1e-3 and p.std().item() == pytest.approx(0.02, rel=0.03) and p.abs().max() < 0.2, (
                name
            )
        elif name.endswith("A_logs"):
            torch.testing.assert_close(p.exp(), torch.arange(1.0, 17).expand_as(p))
        elif name.endswith(("Ds", "norm.weight", "ln_1.weight")):
            assert (p == 1).all(), name
        elif name.endswith(("norm.bias", "ln_1.bias")):
            assert (p == 0).all(), name
        else:
            bound = {
                "x_proj_weight": p.shape[-1] ** -0.5,
                "dt_projs_weight": p.shape[-1] ** -0.5,
                "dt_projs_bias": 6.91,
                "conv2d.weight": 1 / 3,
                "conv2d.bias": 1 / 3,
                "patch_embed.proj.weight": 48**-0.5,
                "patch_embed.proj.bias": 48**-0.5,
                "final_conv.weight": 24**-0.5,
                "final_conv.bias": 24**-0.5,
            }
            limit = next(value for ending, value in bound.items() if name.endswith(ending))
            assert 0.5 * limit < p.abs().max() <= limit, name
            if name.endswith("dt_projs_bias"):
                steps = torch.nn.functional.softplus(p)
                assert 0.00099 < steps.min() and steps.max() < 0.1001
                assert steps.log().mean().item() == pytest.approx(np.log(0.01), abs=0.1)  # log-uniform


def test_the_patch_embedding_is_a_linear_layer_of_patches():
    """As which it is computed on GPUs."""
    embed, images = PatchEmbed2D(3, 8).double(), torch.randn(2, 3, 12, 20, dtype=torch.float64)
    torch.testing.assert_close(embed.norm(embed.as_linear(images)), embed(images))


def test_merging_takes_the_corners_column_by_column():
    merge = PatchMerging2D(1)
    merge.norm, merge.reduction = torch.nn.Identity(), torch.nn.Identity()
    grid = torch.arange(16.0).view(1, 4, 4, 1)
    assert merge(grid)[0, 0, 0].tolist() == [0, 4, 1, 5]  # (even, even), (odd, even), (even, odd), (odd, odd)


def test_expansion_spreads_channels_row_first():
    assert spread(torch.arange(8.0).view(1, 1, 1, 8), 2)[0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (64, 70), (97, 45)])
@torch.no_grad()
def test_any_size_from_32_gives_an_output_of_the_inputs_size(size):
    model = small().eval()
    x = torch.rand(1, 3, *size)
    y = model(x)
    assert y.shape == (1, 1, *size)
    padded = torch.zeros(1, 3, *(-(-side // 32) * 32 for side in size))
    padded[:, :, : size[0], : size[1]] = x
    torch.testing.assert_close(y, model(padded)[:, :, : size[0], : size[1]])


def test_below_32_pixels_is_an_error():
    with pytest.raises(ValueError, match="31 x 64 .*expected .*32 x 32"):
        small()(torch.rand(1, 3, 31, 64))


@torch.no_grad()
def test_grey_input_equals_three_equal_channels():
    model, grey = small().eval(), torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(model(grey), model(grey.repeat(1, 3, 1, 1)))


def test_other_channel_counts_are_an_error_unless_the_model_has_them():
    with pytest.raises(ValueError, match="found 4 input channels, expected 3"):
        small()(torch.rand(1, 4, 32, 32))
    assert small(input_channels=4)(torch.rand(1, 4, 32, 32)).shape == (1, 1, 32, 32)


@torch.no_grad()
def test_predict_gives_probabilities():
    x = torch.rand(1, 3, 32, 32)
    one, several = small().eval(), small(num_classes=4).eval()
    torch.testing.assert_close(one.predict(x), one(x).sigmoid())
    torch.testing.assert_close(several.predict(x).sum(1), torch.ones(1, 32, 32))


def test_vmamba_b_width_has_its_parameter_shapes():
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in VMUNet(dims=128, d_state=8).named_parameters()}
    assert shapes["vmunet.layers.3.blocks.0.self_attention.x_proj_weight"] == (4, 64 + 16, 2048)
    assert shapes["vmunet.layers_up.3.upsample.expand.weight"] == (512, 256)


def test_bad_dims_are_an_error():
    with pytest.raises(ValueError, match="vmunet: found .*dims"):
        VMUNet(dims=(96, 192, 384, 700))


def test_activation_checkpointing_changes_no_gradient():
    x = torch.rand(2, 3, 32, 32)
    gradients = []
    for use_checkpoint in (False, True):
        model = small(use_checkpoint=use_checkpoint, drop_path_rate=0.5)
        torch.manual_seed(7)
        model(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_drop_path_keeps_or_drops_whole_samples_and_keeps_the_mean():
    block = small(drop_path_rate=0.5).vmunet.layers[3].blocks[0].drop_path
    torch.manual_seed(0)
    values = block(torch.ones(4000, 1, 2, 3)).flatten(1)
    assert ((values == 0).all(1) | (values == 2).all(1)).all()
    assert values.mean().item() == pytest.approx(1, abs=0.05)
    assert (block.eval()(torch.ones(5, 1, 1, 1)) == 1).all()


@torch.no_grad()
def test_the_skip_at_a_quarter_is_unused_unless_asked_for():
    x = torch.rand(1, 3, 32, 32)
    published, fourth = small().eval(), small(skip_at_quarter=True).eval()
    fourth.load_state_dict(published.state_dict())
    assert not torch.allclose(published(x), fourth(x))


@pytest.mark.slow
def test_the_whole_network_compiles_in_one_graph():
    """Every step between resolutions, and one block on either side: tracing takes seconds for each."""
    model = small(depths=(1, 0, 0, 0), depths_decoder=(0, 0, 0, 1))
    x = torch.rand(2, 3, 32, 32)
    model.eval()
    torch.compiler.reset()  # or the size of the image is a symbol, after a compilation for another: 54 s instead of 7
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss, loss_compiled = model(x).square().mean(), compiled(x).square().mean()
    torch.testing.assert_close(loss, loss_compiled)
    parameters = list(model.parameters())
    for grad, grad_compiled in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(loss_compiled, parameters), strict=True
    ):
        torch.testing.assert_close(grad, grad_compiled, rtol=1e-4, atol=1e-6)


def test_double_precision_stays_double():
    model = small().double()
    y = model(torch.rand(1, 3, 32, 32, dtype=torch.float64))
    assert y.dtype == torch.float64
    y.sum().backward()
    assert all(p.grad.dtype == torch.float64 for p in model.parameters())


def test_autocast_to_bfloat16_stays_close_to_float32():
    model, x = small().eval(), 255 * torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            y16 = model(x)
    assert ((y16 - y).norm() / (y - y.mean()).norm()).item() < 0.1
