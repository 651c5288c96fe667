"""The depthwise convolution gives what nn.Conv2d gives, on maps of every size."""

from typing import Any

import pytest
import torch
from torch import nn

from evitlab.models.depthwise import DepthwiseConv
from evitlab.models.layers import ConvNorm
from evitlab.models.zoo import create_model

# rows, columns, kernel: fewer rows than the kernel has, fewer columns, neither
SIZES = [
    (2, 2, 3), (1, 1, 3), (1, 4, 3), (2, 5, 3), (5, 2, 3), (4, 4, 5), (2, 2, 7), (4, 3, 7),
    (6, 6, 3),
]  # fmt: skip


def pair(kernel: int, *, channels: int = 6, **options: Any) -> tuple[DepthwiseConv, nn.Conv2d]:
    """Ours and torch's with the same weights."""
    options = {"padding": kernel // 2, "bias": False, **options}
    ours = DepthwiseConv(channels, channels, kernel, groups=channels, **options)
    theirs = nn.Conv2d(channels, channels, kernel, groups=channels, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def small_map_used(y: torch.Tensor) -> bool:
    return "SmallMapConv" in type(y.grad_fn).__name__


@pytest.mark.parametrize(("rows", "columns", "kernel"), SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_are_torchs_to_the_bit_and_gradients_up_to_rounding(rows, columns, kernel, layout):
    ours, theirs = pair(kernel)
    images = torch.randn(4, 6, rows, columns).contiguous(memory_format=layout)
    grad = torch.randn_like(images)
    results = []
    for conv in (ours, theirs):
        x = images.clone().requires_grad_()
        y = conv(x)
        y.backward(grad)
        results.append((y.detach(), x.grad, conv.weight.grad))
    (y, dx, dw), (y0, dx0, dw0) = results
    assert torch.equal(y, y0)
    torch.testing.assert_close(dx, dx0)
    torch.testing.assert_close(dw, dw0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "columns", "kernel"), [*SIZES[:5], (3, 2, 5)])
def test_gradients_agree_with_finite_differences(rows, columns, kernel):
    ours, _ = pair(kernel, channels=2)
    ours.double()
    x = torch.randn(2, 2, rows, columns, dtype=torch.double, requires_grad=True)
    assert small_map_used(ours(x)) == (rows < kernel)
    call = lambda x, w: ours._conv_forward(x, w, None)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, ours.weight))
    assert torch.autograd.gradgradcheck(call, (x, ours.weight))


def test_a_frozen_kernel_or_image_needs_no_gradient():
    ours, _ = pair(3)
    x = torch.randn(2, 6, 2, 2)
    ours(x).sum().backward()  # images without gradient
    assert ours.weight.grad is not None
    ours.weight.requires_grad_(False)
    assert not small_map_used(ours(x.requires_grad_()))


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"bias": True}, {"padding": (1, 0)}, {"dilation": 2, "padding": 2}],
)
def test_other_convolutions_are_torchs(options):
    ours, theirs = pair(3, **options)
    x = torch.randn(2, 6, 2, 4)
    y, expected = ours(x), theirs(x)
    assert torch.equal(y, expected)
    assert not small_map_used(y)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
def test_evaluation_tracing_and_autocast_see_an_ordinary_convolution():
    ours, theirs = pair(3)
    x = torch.randn(2, 6, 2, 2)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(x)
        assert y.dtype == torch.bfloat16 and not small_map_used(y)
        y.float().sum().backward()
    kinds = [node.kind() for node in torch.jit.trace(ours, x).inlined_graph.nodes()]
    assert "aten::_convolution" in kinds
    program = torch.export.export(ours, (x,))
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == [
        "aten.conv2d.default"
    ]


def test_gradients_per_image_by_vmap():
    ours, theirs = pair(3)
    x = torch.randn(5, 6, 2, 2)

    def per_image(conv: nn.Conv2d) -> torch.Tensor:
        def loss(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return conv._conv_forward(image[None], weight, None).square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(conv.weight, x)

    torch.testing.assert_close(per_image(ours), per_image(theirs), atol=1e-5, rtol=1e-5)


def test_the_models_use_it_and_train_as_with_torchs():
    """Last stage at 64 pixels: 2 x 2 positions, fewer rows than any kernel has."""
    model = create_model("efficientvit_m0_p8", img_size=32, num_classes=5, depth=(1, 1, 1))
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert convs and all(type(conv) is DepthwiseConv for conv in convs)
    assert type(ConvNorm(8, 8, 3).conv) is nn.Conv2d
    images = torch.randn(4, 3, 32, 32)
    model.train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        for conv in convs:
            conv.__class__ = nn.Conv2d
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
