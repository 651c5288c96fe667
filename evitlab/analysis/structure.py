"""The structure of an EfficientViT as it really runs: shapes, parameters and MACs by part."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evitlab.models.cost import count_params
from evitlab.models.efficientvit import (
    FFN,
    CascadedGroupAttention,
    EfficientViT,
    LocalWindowAttention,
)
from evitlab.models.layers import ConvNorm
from evitlab.records import BlockNode, BlockTrace


def trace_block(
    model: nn.Module, block: str = "stages.0.blocks.0", *, img_size: int | tuple[int, int] = 0
) -> BlockTrace:
    """Run one image through a copy of the model and note every part of it and of one block.

    Args:
        model: an EfficientViT; it is not touched.
        block: dotted path of the block to open.
        img_size: int or (height, width); 0 takes the size the model was built for.

    Returns:
        Nodes in the order in which they ran. A split or a cascade sum stands there only if a
        head's input really was a part of the block's input, or differed from that part.

    Raises:
        ValueError: not an EfficientViT, or no such block.

    Paper: Fig. 6.

    Example:
        >>> trace = evitlab.trace_block(evitlab.create_model("efficientvit_m0"))
        >>> trace.to_frame()[["name", "params", "macs"]].head(3)
                              name  params      macs
        0          patch_embed   24648  13547520
        1      stages.0.blocks   44548   9596160
        2  stages.1.downsample  171008  11554432
    """
    if not isinstance(model, EfficientViT):
        raise ValueError(f"model: expected an EfficientViT, got {type(model).__name__}")
    modules = dict(model.named_modules())
    blocks = [f"stages.{i}.blocks.{j}" for i, n in enumerate(model.config.depth) for j in range(n)]
    if block not in blocks:
        raise ValueError(f"block: expected one of {', '.join(blocks)}, got {block!r}")
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    height, width = size if all(size) else model.config.img_size

    ghost = copy.deepcopy(model).eval()
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0], output

        return hook

    for name, module in ghost.named_modules():
        module.register_forward_hook(remember(name))
    weight = next(ghost.parameters())
    image = torch.randn(
        1, ghost.config.in_chans, height, width,
        generator=torch.Generator().manual_seed(0), dtype=weight.dtype,
    ).to(weight.device)  # fmt: skip
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        ghost(image)
    flops = {
        name.partition(".")[2]: sum(by_op.values())
        for name, by_op in counter.get_flop_counts().items()
    }

    def node(name: str, kind: str, detail: str = "", head: int | None = None) -> BlockNode:
        inside, out = (tuple(tensor.shape[1:]) for tensor in seen[name])
        macs = flops.get(name, 0) // 2
        return BlockNode(name, kind, inside, out, count_params(modules[name]), macs, detail, head)

    nodes = [node("patch_embed", "stem", f"4 × conv 3×3, 1/{model.config.patch_size}")]
    for stage, depth in enumerate(model.config.depth):
        if stage > 0:
            nodes.append(node(f"stages.{stage}.downsample", "subsample", "FFN, merge, FFN"))
        heads = model.config.num_heads[stage]
        detail = f"{depth} block{'s' if depth > 1 else ''}, {heads} heads"
        nodes.append(node(f"stages.{stage}.blocks", "stage", detail))
    pooled = tuple(seen["head"][0].shape[1:])
    nodes.append(BlockNode("pool", "pool", nodes[-1].out_shape, pooled, 0, 0))
    nodes.append(node("head", "classifier", "norm, linear"))

    for name, residual in modules[block].named_children():
        path = f"{block}.{name}.m"
        nodes.append(node(path, *_describe(residual.m)))
        shape = nodes[-1].out_shape
        nodes.append(BlockNode(f"{block}.{name}", "add", shape, shape, 0, 0))
    path = f"{block}.mixer.m.attn"
    nodes += _attention_nodes(path, modules[path], seen, flops, node)
    name = model.pretrained_cfg["architecture"] if hasattr(model, "pretrained_cfg") else ""
    return BlockTrace(tuple(nodes), model=name, block=block)


def _describe(module: nn.Module) -> tuple[str, str]:
    """Kind and detail of what stands inside a residual of the block."""
    if isinstance(module, FFN):
        widths = module.pw1.conv.in_channels, module.pw1.conv.out_channels
        return "ffn", f"{widths[0]} → {widths[1]} → {widths[0]}"
    if isinstance(module, LocalWindowAttention):
        return "attention", "window {}×{}".format(*module.window)
    assert isinstance(module, ConvNorm)
    return "dwconv", "{}×{}".format(*module.conv.kernel_size)


def _attention_nodes(
    path: str,
    attention: CascadedGroupAttention,
    seen: dict[str, tuple[Tensor, Tensor]],
    flops: dict[str, int],
    node: Callable[..., BlockNode],
) -> list[BlockNode]:
    whole = seen[path][0]  # [windows, C, rows, columns]
    inputs = [seen[f"{path}.qkvs.{head}"][0] for head in range(attention.num_heads)]
    is_split = inputs[0].shape[1] < whole.shape[1]
    parts = whole.split(inputs[0].shape[1], 1) if is_split else [whole] * attention.num_heads
    shape, part = tuple(whole.shape[1:]), tuple(inputs[0].shape[1:])
    value = (attention.value_dim, *part[1:])
    # By the parts that are always called: a convolution may run folded into its norm.
    weighted = ["proj", *(f"{kind}.{j}" for kind in ("qkvs", "dws") for j in range(len(inputs)))]
    products = flops[path] - sum(flops[f"{path}.{name}"] for name in weighted)
    nodes = []
    if is_split:
        detail = f"{attention.num_heads} × {part[0]} channels"
        nodes.append(BlockNode("split", "split", shape, part, 0, 0, detail))
    widths = f"Q {attention.key_dim}, K {attention.key_dim}, V {attention.value_dim}"
    for head, given in enumerate(inputs):
        if not torch.equal(given, parts[head]):
            nodes.append(BlockNode(f"add {head + 1}", "add", part, part, 0, 0, head=head))
        nodes.append(node(f"{path}.qkvs.{head}", "qkv", widths, head))
        _, kernel = _describe(attention.dws[head])
        nodes.append(node(f"{path}.dws.{head}", "dwconv", f"{kernel} on Q", head))
        nodes.append(
            BlockNode(
                f"head {head + 1}", "head", nodes[-2].out_shape, value,
                attention.attention_biases[head].numel(),
                products // 2 // attention.num_heads, "softmax(QKᵀ/√d + bias) V", head,
            )  # fmt: skip
        )
    joined = (attention.num_heads * attention.value_dim, *part[1:])
    nodes.append(BlockNode("concat", "concat", value, joined, 0, 0))
    nodes.append(node(f"{path}.proj.0", "act", type(attention.proj[0]).__name__))
    nodes.append(node(f"{path}.proj.1", "proj", "1×1 convolution"))
    return nodes
