"""The configuration that defines one EfficientViT."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

STEM_STRIDES = {16: (2, 2, 2, 2), 8: (1, 2, 2, 2), 4: (1, 1, 2, 2)}  # by patch size


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig:
    """Everything that defines one EfficientViT; the ablations of Table 6 and Fig. 7 are fields.

    Per-stage tuples hold three values. `ffns` counts the FFNs before and after each attention:
    (1, 1) is the sandwich, (0, 1) the order of a Swin block, (N, N) the paper's N.
    `value_ratio` scales V's width per head relative to the head's split (Fig. 7, right).
    """

    embed_dim: tuple[int, int, int]
    depth: tuple[int, int, int]
    num_heads: tuple[int, int, int]
    kernels: tuple[int, ...]  # query kernel of head 1, 2, …
    window_size: tuple[int, int, int] = (7, 7, 7)
    key_dim: tuple[int, int, int] = (16, 16, 16)
    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    ffn_ratio: float = 2.0
    ffns: tuple[int, int] = (1, 1)
    value_ratio: float = 1.0
    split: bool = True  # each head sees its own split of the channels, not all of them
    cascade: bool = True  # head j's output is added to the input of head j + 1
    token_interaction: bool = True  # depthwise convolution before each FFN
    norm: Literal["batch", "layer"] = "batch"
    activation: Literal["relu", "hardswish"] = "relu"
    drop_path_rate: float = 0.0  # of the last block; rises linearly from 0 at the first
    mask_padding: bool = True  # False: attend to window padding, as the official code does
    distilled: bool = False  # a second classifier, for a teacher; both are averaged in evaluation

    def __post_init__(self) -> None:
        for name, allowed in (
            ("patch_size", tuple(STEM_STRIDES)),
            ("norm", ("batch", "layer")),
            ("activation", ("relu", "hardswish")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        for name in ("embed_dim", "depth", "num_heads", "window_size", "key_dim"):
            self._require_integers(name, "three positive integers", count=3, least=1)
        self._require_integers("img_size", "height and width in pixels", count=2, least=0)
        self._require_integers("ffns", "how many FFNs before and after attention", count=2, least=0)
        self._require_integers("kernels", "positive integers", count=None, least=1)
        for name in ("in_chans", "num_classes"):
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"{name}: expected an integer, got {getattr(self, name)!r}")
        if self.embed_dim[0] < 8:  # the stem begins with an eighth of it
            raise ValueError(f"embed_dim: expected at least 8 channels, got {self.embed_dim}")
        for name in ("ffn_ratio", "value_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if round(min(self.embed_dim) * self.ffn_ratio) < 1:
            raise ValueError(f"ffn_ratio: expected to leave a hidden channel, got {self.ffn_ratio}")
        if min(self.img_size) < self.patch_size:
            smaller = [p for p in STEM_STRIDES if p <= min(self.img_size)]
            hint = f"; patch_size={max(smaller)} would fit" if smaller else ""
            raise ValueError(
                f"img_size: expected both sides of at least patch_size={self.patch_size} pixels, "
                f"got {self.img_size}{hint}"
            )
        if self.in_chans < 1 or self.num_classes < 0:
            raise ValueError(
                "in_chans and num_classes: expected at least 1 channel and 0 classes, "
                f"got {self.in_chans} and {self.num_classes}"
            )
        if len(self.kernels) < max(self.num_heads) or any(k % 2 == 0 for k in self.kernels):
            raise ValueError(
                f"kernels: expected an odd kernel for each of {max(self.num_heads)} heads, "
                f"got {self.kernels}"
            )
        if any(c % h for c, h in zip(self.embed_dim, self.num_heads, strict=True)):
            raise ValueError(
                f"num_heads: expected divisors of embed_dim {self.embed_dim}, got {self.num_heads}"
            )
        if self.cascade and not self.split:
            raise ValueError("cascade: expected False where split is False, got True")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: expected 0 to below 1, got {self.drop_path_rate}")

    def _require_integers(self, name: str, expected: str, *, count: int | None, least: int) -> None:
        value = getattr(self, name)
        whole = isinstance(value, tuple) and all(isinstance(v, Integral) for v in value)
        if not whole or count not in (None, len(value)) or min(value, default=least) < least:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
