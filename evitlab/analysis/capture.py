"""What attention really computed: its maps, Q, K, V and head outputs, from the operators that ran.

Hooks say which attention module is running; a torch function mode sees its softmax and the two
products around it. So the maps are the very tensors of the forward pass, and one rule serves every
way of writing attention down.

Shape legend: B images, w windows of an image, G = B * w, image by image and each image's windows
row by row; h heads, N queries, M keys (M = N but where LeViT downsamples), d width of Q and K,
v width of V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm import layers as timm_layers
from timm.models import (
    beit,
    efficientvit_msra,
    eva,
    levit,
    swin_transformer,
    swin_transformer_v2,
    tiny_vit,
    vision_transformer,
    vision_transformer_relpos,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evitlab.analysis.conditions import fused_attention
from evitlab.analysis.layout import TokenLayout, global_layout
from evitlab.models.deployed_layers import DeployedAttention
from evitlab.models.deployed_transformer import within
from evitlab.models.efficientvit import CascadedGroupAttention, LocalWindowAttention

# The modules in which attention happens, and over what: "global" is all tokens of an image.
ATTENTIONS: dict[type[nn.Module], str] = {
    vision_transformer.Attention: "global",
    vision_transformer.ParallelScalingBlock: "global",
    vision_transformer_relpos.RelPosAttention: "global",
    timm_layers.AttentionRope: "global",
    beit.Attention: "global",
    eva.EvaAttention: "global",
    levit.Attention: "global",
    levit.AttentionDownsample: "global",
    swin_transformer.WindowAttention: "window",
    swin_transformer_v2.WindowAttention: "window",
    tiny_vit.Attention: "window",
    efficientvit_msra.CascadedGroupAttention: "cascade",
    CascadedGroupAttention: "cascade",
    DeployedAttention: "cascade",
}
FAMILIES = (
    "evitlab's EfficientViT (also deployed), DeiT and Swin; timm's vit, deit, deit3, beit, eva02, "
    "swin, swinv2, levit, tiny_vit and efficientvit (msra)"
)

_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax}
_PRODUCTS = {  # -> where the two factors stand among the arguments
    torch.matmul: 0, Tensor.matmul: 0, Tensor.__matmul__: 0, torch.bmm: 0, Tensor.bmm: 0,
    torch.baddbmm: 1, Tensor.baddbmm: 1,
}  # fmt: skip
_DROPOUT = {F.dropout, torch.dropout}


class AttentionMaps(NamedTuple):
    """One attention block of one forward pass; part of the graph where gradients are on.

    Windows of images that do not fill them, and shifted windows, are masked: such keys have
    weight 0. Rows of padded queries stand in the maps too.
    """

    block: int  # counted from 1 in the order of execution
    name: str  # dotted path of the attention module
    kind: str  # "global", "window", or "cascade" (heads one after the other, in windows)
    windows: int  # w, of each image; 1 where attention is global
    maps: Tensor  # [G, h, N, M], after the softmax, before any dropout; rows sum to 1
    queries: Tensor  # [G, h, N, d], as multiplied with the keys: timm's carry the softmax scale
    keys: Tensor  # [G, h, M, d]
    values: Tensor  # [G, h, M, v]
    outputs: Tensor  # [G, h, N, v], the heads' outputs: maps @ values, unless dropout is on
    layout: TokenLayout | None  # where the keys stand on the image; None: not known
    query_layout: TokenLayout | None  # the same, but where LeViT downsamples

    @property
    def num_heads(self) -> int:
        return self.maps.shape[1]

    def by_image(self) -> Tensor:
        """The maps as [B, w, h, N, M]."""
        return self.maps.unflatten(0, (-1, self.windows))


class HeadOutputs(NamedTuple):
    """What some heads of a block have just computed, before anything else reads it.

    EfficientViT's heads come one by one: each one's output enters the next. Others come at once.
    """

    block: int  # counted from 1
    name: str  # dotted path of the attention module
    heads: range  # k of them, counted from 1
    windows: int  # w, of each image
    values: Tensor  # [G, k, N, v]


Edit = Callable[[HeadOutputs], Tensor]


@contextmanager
def capture_attention(
    model: nn.Module,
    *,
    each: Callable[[AttentionMaps], None] | None = None,
    edit: Edit | None = None,
) -> Iterator[list[AttentionMaps]]:
    """Watch the attention of every forward pass that runs inside.

    Fused attention is split into separate operators meanwhile: a fused kernel has no maps.

    Args:
        model: it runs in the mode it is in, and outside it everything is as before afterwards,
            also when a forward pass raises: hooks, fused-attention flags, modes.
        each: called with every block as soon as it has run, and nothing is kept: for passes over
            many images. None fills the list.
        edit: called with the heads' outputs as they are computed; the model goes on with what it
            returns, of the same shape.

    Yields:
        The blocks of the latest forward pass, in order; the next pass empties the list first. It
        stays readable afterwards. Empty where `each` is given.

    Raises:
        ValueError: the model has no attention that is known here, with what is supported.
        RuntimeError: a known attention module ran without softmax(Q K) V.

    Pitfall: attention that pools all tokens into one at the end of some ViTs is not a block.

    Example:
        >>> model = evitlab.create_model("efficientvit_m0_p4", img_size=32, num_classes=10).eval()
        >>> with torch.no_grad(), evitlab.capture_attention(model) as blocks:
        ...     logits = model(torch.rand(2, 3, 32, 32))
        >>> blocks[0].name, blocks[0].maps.shape  # 2 images, 4 heads, 8 x 8 tokens
        ('stages.0.blocks.0.mixer.m.attn', torch.Size([2, 4, 64, 64]))
    """
    attentions = attention_modules(model)
    recorder = _Recorder(model, attentions, each, edit)
    with ExitStack() as stack:
        stack.enter_context(fused_attention(model, False))
        stack.callback(model.register_forward_pre_hook(recorder.begin).remove)
        for owner in recorder.owners.values():
            stack.callback(owner.register_forward_pre_hook(recorder.measure).remove)
        for child in model.children():
            hook = child.register_forward_pre_hook(recorder.count_images, with_kwargs=True)
            stack.callback(hook.remove)
        for module in attentions:
            stack.callback(module.register_forward_pre_hook(recorder.enter).remove)
            # Always: also of a module that raised, and whose caller went on.
            hook = module.register_forward_hook(recorder.leave, always_call=True)
            stack.callback(hook.remove)
        stack.callback(recorder.stop)  # an interrupt skips the hooks
        yield recorder.blocks


def attention_modules(model: nn.Module) -> dict[nn.Module, tuple[str, str]]:
    """Each attention module's dotted path and kind, in the order in which they are registered.

    Raises:
        ValueError: there is none.
    """
    found = {
        module: (name, kind)
        for name, module in model.named_modules()
        if (kind := _kind(module)) is not None
    }
    if not found:
        raise ValueError(
            f"model: expected attention of a known kind, got {type(model).__name__} without any; "
            f"supported: {FAMILIES}"
        )
    return found


def _kind(module: nn.Module) -> str | None:
    """None: no attention."""
    kinds = (kind for known, kind in ATTENTIONS.items() if isinstance(module, known))
    kind = next(kinds, None)
    return "window" if kind == "cascade" and not getattr(module, "cascade", True) else kind


@dataclass
class _Scope:
    """One attention module while it runs; heads one by one where it computes them so."""

    module: nn.Module
    factors: tuple[Tensor, Tensor] | None = None  # of the latest product
    map: Tensor | None = None  # its softmax, whose product with V is still to come
    dropped: Tensor | None = None  # the same after dropout
    heads: list[tuple[Tensor, ...]] = field(default_factory=list)  # maps, Q, K, V, outputs


class _Recorder(TorchFunctionMode):
    """Puts softmax and products of the running attention together.

    The mode is on only while an attention module runs: it costs microseconds at every operator.
    """

    def __init__(
        self,
        model: nn.Module,
        attentions: Mapping[nn.Module, tuple[str, str]],
        each: Callable[[AttentionMaps], None] | None,
        edit: Edit | None,
    ) -> None:
        super().__init__()
        self.blocks: list[AttentionMaps] = []
        # What cuts the feature map into windows: the attention module's parent, or itself.
        self.owners = {
            module: module
            if isinstance(module, DeployedAttention)
            else model.get_submodule(name.rpartition(".")[0])
            for module, (name, kind) in attentions.items()
            if kind != "global"
        }
        self._attentions = attentions
        self._each = each
        self._edit = edit
        self._prefix = getattr(within(model), "num_prefix_tokens", None)
        self._images = 0
        self._img_size: tuple[int, ...] = ()
        self._maps: dict[nn.Module, tuple[int, ...]] = {}  # owner -> feature map [B, …]
        self._seen: list[nn.Module] = []
        self._running: _Scope | None = None

    def begin(self, _model: nn.Module, inputs: object) -> None:
        """A new forward pass."""
        self.stop()
        given = inputs[0] if isinstance(inputs, tuple) and inputs else None
        self._img_size = tuple(given.shape[2:]) if isinstance(given, Tensor) else ()
        self._seen.clear()
        self.blocks.clear()

    def count_images(
        self, _child: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        """B, from what enters the model's outermost parts."""
        given = next((x for x in (*inputs, *options.values()) if isinstance(x, Tensor)), None)
        if given is not None and given.ndim > 1:
            self._images = len(given)

    def measure(self, owner: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The feature map that is about to be cut into windows."""
        self._maps[owner] = tuple(inputs[0].shape)

    def enter(self, module: nn.Module, _inputs: object) -> None:
        if module in self._seen:  # a part of the model was called without the model itself
            self.begin(module, None)
        self.stop()
        self._running = _Scope(module)
        self.__enter__()

    def stop(self) -> _Scope | None:
        """No attention runs any more; the one that did."""
        scope, self._running = self._running, None
        if scope is not None:
            self.__exit__(None, None, None)
        return scope

    def leave(self, module: nn.Module, _inputs: object, output: object) -> None:
        scope = self.stop()
        if output is None or scope is None or scope.module is not module:
            return  # it raised
        name, kind = self._attentions[module]
        if not scope.heads:
            raise RuntimeError(f"{name}: no softmax(Q K) V ran in {type(module).__name__}")
        maps, q, k, v, out = (_joined(parts) for parts in zip(*scope.heads, strict=True))
        self._seen.append(module)
        windows = len(maps) // self._images
        keys, queries = (self._layout(module, maps.shape[-i]) for i in (1, 2))
        block = AttentionMaps(
            len(self._seen), name, kind, windows, maps, q, k, v, out, keys, queries
        )
        del scope
        if self._each is None:
            self.blocks.append(block)
        else:
            self._each(block)

    def _layout(self, module: nn.Module, tokens: int) -> TokenLayout | None:
        """Where so many tokens stand, of an image or of each window."""
        if module not in self.owners:
            return global_layout(tokens, self._img_size, self._prefix)
        owner = self.owners[module]
        if len(shape := self._maps.get(owner, ())) != 4:
            return None
        first = isinstance(owner, (LocalWindowAttention, efficientvit_msra.LocalWindowAttention))
        grid = shape[2:] if first else shape[1:3]
        window = getattr(owner, "window", None) or getattr(owner, "window_size", None)
        if not isinstance(window, tuple):  # of a square one only the largest side is known
            window = (round(tokens**0.5),) * 2
        shift = getattr(owner, "shift_size", (0, 0))
        layout = TokenLayout((grid[0], grid[1]), window, tuple(shift))
        return layout if layout.index.shape[1] == tokens else None

    def _edited(self, edit: Edit, module: nn.Module, output: Tensor, first: int) -> Tensor:
        """Heads' output, [G, k, N, v] or one head's [G, N, v], as the caller wants it."""
        values = output if output.ndim == 4 else output[:, None]
        heads = range(first, first + values.shape[1])
        name, _ = self._attentions[module]
        windows = len(values) // self._images
        given = edit(HeadOutputs(len(self._seen) + 1, name, heads, windows, values))
        if given.shape != values.shape:
            expected, got = list(values.shape), list(given.shape)
            raise ValueError(f"edit: expected heads' outputs {expected} from it, got {got}")
        return given if output.ndim == 4 else given[:, 0]

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        result = func(*args, **(kwargs or {}))
        scope = self._running
        if scope is None:
            return result
        if func in _SOFTMAX:
            scope.map = scope.dropped = result
        elif func in _DROPOUT and args[0] is scope.map:
            scope.dropped = result
        elif func in _PRODUCTS:
            first, second = args[_PRODUCTS[func] :][:2]
            if scope.map is None:
                scope.factors = first, second.transpose(-2, -1)
            else:
                assert scope.factors is not None and scope.dropped is not None
                values, output = second, result
                transposed = second.data_ptr() == scope.dropped.data_ptr()  # V A^T
                if transposed:
                    values, output = first.transpose(-2, -1), result.transpose(-2, -1)
                if self._edit is not None:
                    output = self._edited(self._edit, scope.module, output, len(scope.heads) + 1)
                    result = output.transpose(-2, -1) if transposed else output
                scope.heads.append((scope.map, *scope.factors, values, output))
                scope.map = scope.dropped = scope.factors = None
        return result


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    """All heads' at once, [G, h, …], also where each head computed its own [G, …]."""
    return parts[0] if parts[0].ndim == 4 else torch.stack(parts, 1)
