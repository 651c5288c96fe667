"""Conditions of a measurement: torch's threads, and whether attention may be fused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod

import torch
from timm.layers import config as timm_config
from timm.layers import set_fused_attn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

# Who changes a model or torch for a while has both alone: JupyterLab runs a widget's callbacks in
# a thread beside the cells. One lock for all of them, so that none waits for another for ever.
ALONE = threading.RLock()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch's CPU threads for a while; None leaves them.

    Raises ValueError where the count is below one.
    """
    if count is not None and count < 1:
        raise ValueError(f"threads: expected at least 1, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fused_attention(model: nn.Module, enable: bool | None) -> Iterator[None]:
    """Attention as one fused kernel or as separate operators, for a while.

    Args:
        model: its modules' own `fused_attn` flags are set too, since timm's switch is read when a
            model is built.
        enable: True: wherever the model can; False: nowhere, the paper's conditions; None leaves
            everything as it is.

    Pitfall: an attention that is written out in separate operators, such as our eager models',
    stays so: `True` allows the kernel, it does not put one in.
    """
    if enable is None:
        yield
        return
    with ALONE, ExitStack() as stack:
        flags = [
            (module, module.fused_attn)
            for module in model.modules()
            if isinstance(getattr(module, "fused_attn", None), bool)
        ]
        switch = sum(timm_config.use_fused_attn(experimental=more) for more in (False, True))
        fast_path = torch.backends.mha.get_fastpath_enabled()
        stack.callback(set_fused_attn, switch > 0, experimental=switch > 1)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        for module, flag in flags:
            stack.callback(setattr, module, "fused_attn", flag)
            setattr(module, "fused_attn", enable)  # noqa: B010 - no attribute of nn.Module
        # Experimental: timm fuses Swin's windows only then.
        set_fused_attn(enable, experimental=enable)
        if not enable:
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """No bar of tqdm meanwhile: in a notebook each is a widget, which a page like Voila's misses
    once it is closed ("model not found"). For callers that say themselves that they are at work.

    Pitfall: bars that other threads begin meanwhile are not shown either.
    """
    with ALONE:
        given = vars(tqdm).get("__init__")
        setattr(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True))  # noqa: B010
        try:
            yield
        finally:
            if given is None:
                delattr(tqdm, "__init__")
            else:
                setattr(tqdm, "__init__", given)  # noqa: B010


@contextmanager
def in_eval_mode(
    model: nn.Module, place: torch.device | None = None, home: torch.device | None = None
) -> Iterator[None]:
    """The model in evaluation mode, and on another device where it is asked to go from its home to
    one; all comes back, also after an error.

    timm's LeViT, TinyViT and EfficientViT keep bias tables that they looked up, and drop them in
    `train()`, which is not how modes come back one by one: they get their own ones back too.
    """
    with ALONE:
        modes = [(module, module.training) for module in model.modules()]
        key = "attention_bias_cache"
        caches = [
            (vars(module), vars(module)[key]) for module in model.modules() if key in vars(module)
        ]
        try:
            if place != home:
                model.to(place)
            model.eval()
            for attributes, _ in caches:
                attributes[key] = {}
            yield
        finally:
            if place != home:
                model.to(home)
            for module, was_training in modes:
                module.training = was_training
            for attributes, cache in caches:
                attributes[key] = cache
