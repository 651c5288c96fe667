"""What one operator call must move and compute, from its arguments and its result alone.

The model of the bytes, operator by operator:

| operators | read | written |
|---|---|---|
| views (by their schema: the result aliases an argument), `_unsafe_view` | nothing | nothing |
| allocations: `empty`, `empty_like`, … | nothing | nothing |
| factories: `zeros_like`, `new_full`, `arange`, … | nothing | the result |
| overwriting in place: `copy_`, `fill_`, `zero_`, … | the source, if there is one | the target |
| gathers: `embedding`, `index`, `index_select`, `gather` | the index, and of the source as many elements as are taken | the result |
| products with `beta=0`: `addmm`, `baddbmm`, `addmv` | the factors, not the summand | the result |
| everything else, in place or not | every tensor argument once | every result once |

A tensor's elements count once: an expanded dimension (stride 0) has one element, a tensor passed
twice is read once, and an operator's inner passes over the same data (a softmax makes three) are
taken to be served by the cache. So this is compulsory traffic, a lower bound of what really moves.
A line that a CPU reads only because it is about to overwrite it (write-allocate) is not counted.

Multiply-accumulates are those of convolutions, matrix products and fused attention, by the
formulas of torch's own FLOP counter, halved; everything else counts 0, as in the paper.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

# Names without namespace, overload, and underscores at either end: "add" is also `add_`.
_NO_TRAFFIC = frozenset({
    "empty", "empty_like", "empty_permuted", "empty_strided", "lift_fresh", "new_empty",
    "new_empty_strided", "reshape_alias", "resize", "unsafe_view",
})  # fmt: skip
_FACTORIES = frozenset({
    "full_like", "new_full", "new_ones", "new_zeros", "ones_like", "rand_like", "randn_like",
    "zeros_like",
})  # fmt: skip
_OVERWRITES = frozenset({
    "bernoulli", "copy", "exponential", "fill", "normal", "random", "uniform", "zero",
})  # fmt: skip
_GATHERS = frozenset({"embedding", "gather", "index", "index_select", "take"})


@dataclass(frozen=True)
class Traffic:
    """What one call costs at least."""

    bytes: int  # read and written
    macs: int  # multiply-accumulates


def bare_name(operator: str) -> str:
    """ "softmax" for "aten::_softmax", "add" for "aten::add_" and "aten.add_.Tensor"."""
    name = operator.partition("::")[2] or operator
    return name.strip("_")


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's distinct elements: an expanded dimension counts once."""
    if tensor.layout is not torch.strided:
        return tensor.numel() * tensor.element_size()
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    distinct = prod(size if stride or not size else 1 for size, stride in sizes)
    return distinct * tensor.element_size()


def call_traffic(
    operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> Traffic:
    """Bytes and multiply-accumulates of one call, after it has returned `result`."""
    return Traffic(_bytes(operator, args, kwargs, result), _macs(operator, args, kwargs, result))


def _bytes(
    operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> int:
    name = bare_name(operator._schema.name)
    if name in _NO_TRAFFIC or _is_view(operator):
        return 0
    written = _total(result)
    if name in _FACTORIES:
        return written
    given = _arguments(operator, args, kwargs)
    if name in _GATHERS:
        source, *index = given.values()
        taken = sum(t.numel() for t in _tensors(result)) * next(_tensors(source)).element_size()
        return min(taken, _total(source)) + _total(index) + written
    skipped = {
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and (argument.is_out or name in _OVERWRITES)
    }
    if given.get("beta", 1) == 0 and "self" in given:
        skipped.add("self")  # a summand that is scaled by 0 is not read
    read = _total([value for key, value in given.items() if key not in skipped])
    return read + written


def _is_view(operator: OpOverload) -> bool:
    """The result shares its elements with an argument, and nothing is written."""
    aliases = [returned.alias_info for returned in operator._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _arguments(
    operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by name, in the schema's order."""
    names = [argument.name for argument in operator._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _total(value: Any) -> int:
    """Bytes of all tensors in nested sequences, the same elements once."""
    distinct = {
        (t.data_ptr(), t.shape, t.stride()) if t.data_ptr() else id(t): tensor_bytes(t)
        for t in _tensors(value)
    }
    return sum(distinct.values())


def _macs(operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    own = _MACS.get(bare_name(operator._schema.name))
    if own is not None:
        return own(list(_arguments(operator, args, kwargs).values()))
    flops = flop_registry.get(operator.overloadpacket)
    if flops is None:
        return 0
    return int(flops(*args, **kwargs, out_val=result)) // 2  # a MAC is two of torch's FLOPs


def _attention_macs(args: list[Any]) -> int:
    """query [B, h, N, d], key [B, h, M, d], value [B, h, M, d']: QKᵀ, then its product with V."""
    (*lead, queries, width), keys, values = args[0].shape, args[1].shape[-2], args[2].shape[-1]
    return int(prod(lead) * queries * keys * (width + values))


def _encoder_macs(args: list[Any]) -> int:
    """torch's fused attention module or layer on [B, N, E]: its weight matrices, QKᵀ and AV."""
    images, tokens, width = args[0].shape
    matrices = [t for t in _tensors(args) if t.ndim == 2 and t.is_floating_point()]
    weights = sum(t.numel() for t in matrices if width in t.shape)
    return int(images * tokens * (weights + 2 * tokens * width))


# What torch's counter does not know, in all versions this library supports.
_MACS: dict[str, Callable[[list[Any]], int]] = {
    "scaled_dot_product_flash_attention_for_cpu": _attention_macs,
    "scaled_dot_product_fused_attention_overrideable": _attention_macs,
    "native_multi_head_attention": _encoder_macs,
    "transformer_encoder_layer_fwd": _encoder_macs,
    "mv": lambda args: args[0].numel(),
    "addmv": lambda args: args[1].numel(),
    "dot": lambda args: args[0].numel(),
}
