"""Which part of a model a module is: attention, FFN, norm, …, told from its class and its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


class Rule(NamedTuple):
    """One line of the table: a module of this class, or of this name, is this part."""

    part: str  # one of evitlab.records.PARTS
    classes: str = r"(?!)"  # searched in the class's name; matches nothing by default
    names: str = r"(?!)"  # searched in the dotted path
    open: bool = False  # modules inside are told apart; else they belong to this part too


# The first rule that fits decides, from the model's root downwards. "other" is what no module
# claims: mostly residual additions, and activations that stand alone.
RULES = (
    Rule("head", names=r"^(head(s|_\w+)?|classifier|fc|fc_norm|conv_head|global_pool|avgpool)$"),
    Rule("head", r"^(NormLinear|ClassifierHead|NormMlpClassifierHead|SelectAdaptivePool2d)$"),
    Rule("embedding", r"PatchEmbed|Merging$|(?<!Levit)Downsample$|^ConvStem$|^Stem"),
    Rule("embedding", names=r"^(patch_embed\w*|stem\w*|conv_stem|conv1|conv_proj|features\.0)$"),
    Rule("embedding", names=r"(^|\.)downsample(_layers\.\d+)?$", open=True),
    # Window partition and unfolding run in the block itself, along with its residual additions.
    Rule("attention", r"^(SwinTransformer(V2)?Block|MobileVit(V2)?Block)$", open=True),
    Rule("attention", r"(Attention|Attn|MHSA|Mhsa|XCA|Mqa)(2d|Rope|V\d|Downsample)?$"),
    Rule("ffn", r"(Mlp|MLP|MLPBlock|FFN|FeedForward|SwiGLU|SqueezeExcit\w+|SEModule)$"),
    Rule("token mixing", r"^(SpatialConv|Depthwise)$"),  # "SpatialConv" as `_kind` has it
    Rule("ffn", r"^(PointwiseConv|Pointwise|Linear)$"),  # mixes the channels of each token
    Rule("norm", r"(Batch|Layer|Group|Instance|Rms|RMS)Norm"),
)


def parts_of(model: nn.Module) -> dict[nn.Module, str]:
    """The part that each module belongs to; modules that belong to none are left out.

    Those inside of a part are in it by themselves: some models call them one by one.
    """
    parts: dict[nn.Module, str] = {}

    def visit(module: nn.Module, path: str, above: str | None, told: bool) -> None:
        rule = None if told else _rule(module, path)
        part = rule.part if rule else above
        if part:
            parts[module] = part
        for name, child in module.named_children():
            visit(child, f"{path}.{name}", part, told or (rule is not None and not rule.open))

    for name, child in model.named_children():
        visit(child, name, None, False)
    return parts


def _rule(module: nn.Module, path: str) -> Rule | None:
    kind = _kind(module)
    for rule in RULES:
        if re.search(rule.classes, kind) or re.search(rule.names, path):
            return rule
    return None


def _kind(module: nn.Module) -> str:
    """The class's name; convolutions, also with a norm behind, by what they mix."""
    conv = module if isinstance(module, nn.Conv2d) else getattr(module, "conv", None)
    if not isinstance(conv, nn.Conv2d):
        return type(module).__name__
    pointwise = conv.kernel_size == (1, 1)
    return "PointwiseConv" if pointwise else "SpatialConv"


@contextmanager
def scopes(
    parts: Mapping[nn.Module, str], scope: Callable[[str], AbstractContextManager[object]]
) -> Iterator[None]:
    """Enter `scope(part)` while modules of a part run, once where they run inside each other.

    The hooks are torch's global ones, so that no module is changed; afterwards they are gone, and
    every scope is left, also when a forward pass raises.
    """
    running: list[tuple[nn.Module, AbstractContextManager[object]]] = []

    def enter(module: nn.Module, _inputs: object) -> None:
        part = parts.get(module)
        if part is None or (running and parts[running[-1][0]] == part):
            return
        entered = scope(part)
        entered.__enter__()
        running.append((module, entered))

    def leave(module: nn.Module, _inputs: object, _output: object) -> None:
        if running and running[-1][0] is module:
            running.pop()[1].__exit__(None, None, None)

    def leave_all() -> None:
        while running:  # an interrupt skips the hooks
            running.pop()[1].__exit__(None, None, None)

    with ExitStack() as stack:
        stack.callback(leave_all)
        stack.callback(register_module_forward_pre_hook(enter).remove)
        # Always: also of a module that raised, and whose caller went on.
        stack.callback(register_module_forward_hook(leave, always_call=True).remove)
        yield
