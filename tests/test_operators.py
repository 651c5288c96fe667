"""Operator profiles: what is counted, where it is filed, and that nothing stays behind."""

from __future__ import annotations

import copy
import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn, use_fused_attn
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from evitlab import count_macs, deploy
from evitlab.analysis import operators, roofline
from evitlab.analysis.categories import CATEGORY_OF, category_of
from evitlab.analysis.conditions import fused_attention
from evitlab.analysis.operators import profile_operators
from evitlab.analysis.parts import RULES, parts_of, scopes
from evitlab.analysis.subjects import build
from evitlab.analysis.traffic import bare_name
from evitlab.cli import main
from evitlab.records import (
    CATEGORIES,
    MEMORY_BOUND,
    PARTS,
    OperatorProfile,
    OperatorProfiles,
    Roofline,
    environment_card,
)

# The models that the table of categories must know without remainder.
NAMED = (
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    *(f"efficientvit_m{i}" for i in range(6)),
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
)


@pytest.fixture(autouse=True)
def made_up_roofline(monkeypatch: pytest.MonkeyPatch) -> Roofline:
    """2 GMAC/s, 1 GB/s, 5 µs a call: measured ones take seconds, and are tested apart."""
    ceilings = Roofline(2.0, 1.0, 5.0, environment_card())
    monkeypatch.setattr(operators, "measure_roofline", lambda *_args, **_kwargs: ceilings)
    return ceilings


class Toy(nn.Module):
    """[B, 3, 8, 8] -> [B, 2]: one module of each part, and an addition that no part claims."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 2, 2)
        self.norm1 = nn.LayerNorm(4)
        self.attn = Attention(4)
        self.mlp = Mlp(4, 6)
        self.dwconv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).mT.contiguous()  # [B, 16, 4]
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(x)
        x = self.dwconv(x.mT.unflatten(2, (4, 4)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    fused_attn = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = nn.LayerNorm(dim)  # attention's own: it stays attention

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, -1)
        if self.fused_attn:
            return F.scaled_dot_product_attention(q, k, v)[:, 0]
        return (torch.matmul(q, k.transpose(-1, -2)).softmax(-1) @ v)[:, 0]


class Mlp(nn.Sequential):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def profile_toy(**options: Any) -> OperatorProfile:
    model = options.pop("model", None) or Toy()
    return profile_operators(model, torch.zeros(2, 3, 8, 8), rounds=2, **options)


def table(profile: OperatorProfile) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(operator, part): calls, bytes, MACs."""
    return {
        (row.operator.removeprefix("aten::"), row.module): (row.calls, row.bytes, row.macs)
        for row in profile.rows
    }


def test_a_toy_by_hand() -> None:
    """Batch 2, 16 tokens of width 4."""
    rows = table(profile_toy(fused_attention=False))
    stem = 4 * (2 * 3 * 64 + 4 * 3 * 4 + 4 + 2 * 4 * 16)
    assert rows["convolution", "embedding"] == (1, stem, 2 * 16 * 4 * 12)
    assert rows["convolution", "token mixing"][::2] == (1, 2 * 16 * 4 * 9)
    tokens = 4 * 2 * 16
    assert rows["native_layer_norm", "norm"] == (1, 4 * (2 * tokens + 4 + 4) + 4 * 2 * 32, 0)
    assert rows["native_layer_norm", "attention"] == rows["native_layer_norm", "norm"]
    assert rows["addmm", "attention"][::2] == (1, 2 * 16 * 4 * 12)
    assert rows["bmm", "attention"][::2] == (2, 2 * 2 * 16 * 16 * 4)
    assert rows["_softmax", "attention"] == (1, 4 * 2 * (2 * 16 * 16), 0)
    assert rows["addmm", "ffn"][::2] == (2, 2 * 2 * 16 * 4 * 6)
    assert rows["gelu", "ffn"] == (1, 4 * 2 * (2 * 16 * 6), 0)
    assert rows["addmm", "head"][::2] == (1, 2 * 4 * 2)
    assert rows["add", "other"] == (2, 2 * 4 * 3 * tokens, 0)
    assert rows["mean", "other"] == (1, 4 * (tokens + 8), 0)


def test_what_an_operator_calls_inside_is_its_own_time() -> None:
    """No allocation and no library's kernel has a row."""
    names = {row.operator.removeprefix("aten::") for row in profile_toy().rows}
    assert not names & {"empty", "_convolution", "mkldnn_convolution", "resize_", "as_strided"}
    assert {"convolution", "conv2d", "linear", "addmm"} <= names  # wrappers have their own


def test_rows_are_in_order_and_parts_add_up(made_up_roofline: Roofline) -> None:
    profile = profile_toy()
    times = [row.self_ms for row in profile.rows]
    assert times == sorted(times, reverse=True) and min(times) >= 0
    for frame, order in ((profile.by_category(), CATEGORIES), (profile.by_module(), PARTS)):
        assert tuple(frame.iloc[:, 0]) == order
        assert frame["self_ms"].sum() == pytest.approx(profile.self_ms)
        assert frame["share"].sum() == pytest.approx(1)
        assert frame["floor_share"].sum() == pytest.approx(1)
        for name in ("calls", "bytes", "macs"):
            assert frame[name].sum() == getattr(profile, name) > 0
    bound = profile.by_category().set_index("category")["share"].loc[list(MEMORY_BOUND)]
    assert profile.memory_bound_share == pytest.approx(bound.sum())
    assert profile.dispatch_ms == pytest.approx(5e-3 * profile.calls)
    assert profile.overhead == profile.profiled_ms / profile.plain_ms


def test_floors_are_those_of_each_row(made_up_roofline: Roofline) -> None:
    """2 GMAC/s against 1 GB/s: a row takes the longer of MACs / 2 and bytes, in ns."""
    profile = profile_toy()
    frame = profile.by_category().set_index("category")
    floors = dict.fromkeys(CATEGORIES, 0.0)
    for row in profile.rows:
        floors[row.category] += 1e-6 * max(row.macs / 2, row.bytes)
    assert frame["floor_ms"].to_dict() == pytest.approx(floors)
    gelu_and_others = frame.loc["element-wise"]
    assert gelu_and_others["achieved"] == pytest.approx(
        gelu_and_others["floor_ms"] / gelu_and_others["self_ms"]
    )
    assert gelu_and_others["intensity"] == 0
    twice = Roofline(4.0, 2.0, 5.0, made_up_roofline.environment)
    halved = profile.by_category(twice).set_index("category")["floor_ms"]
    assert halved.to_dict() == pytest.approx({kind: ms / 2 for kind, ms in floors.items()})


def test_record_reloads(tmp_path: Path) -> None:
    profile = profile_toy(name="toy")
    assert (profile.model, profile.batch_size, profile.img_size) == ("toy", 2, (8, 8))
    assert OperatorProfile.load(profile.save(tmp_path / "profile.json")) == profile
    both = OperatorProfiles((profile, profile), "evitlab profile", profile.environment)
    assert OperatorProfiles.load(both.save(tmp_path / "both.json")) == both
    assert len(both.to_frame()) == 2 * len(profile.rows)


def test_fused_and_unfused_attention() -> None:
    """As many MACs; softmax and its map are gone where it is fused."""
    on, off, as_it_is = (profile_toy(fused_attention=fused) for fused in (True, False, None))
    assert on.macs == off.macs and on.bytes < off.bytes
    assert ("_softmax", "attention") in table(off) and ("_softmax", "attention") not in table(on)
    assert on.fused_attention and as_it_is.fused_attention and not off.fused_attention
    assert table(as_it_is) == table(on)


def test_attention_without_a_switch_is_split_too() -> None:
    """torch's own module and a bare call of the function know no timm."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.zeros(2, 5, 8)
    profile = profile_operators(attention, (tokens,) * 3, rounds=1, fused_attention=False)
    assert "aten::_softmax" in {row.operator for row in profile.rows}
    assert profile.img_size is None and profile.batch_size == 2
    fused = profile_operators(attention, (tokens,) * 3, rounds=1, fused_attention=True)
    assert fused.macs <= profile.macs


@pytest.mark.parametrize("switch", [(False, False), (True, False), (True, True)])
def test_fused_switch_and_flags_come_back(switch: tuple[bool, bool]) -> None:
    before = use_fused_attn(), use_fused_attn(experimental=True)
    try:
        set_fused_attn(switch[0], experimental=switch[1])
        now = use_fused_attn(), use_fused_attn(experimental=True)
        model = Toy()
        for enable in (True, False):
            with pytest.raises(KeyError), fused_attention(model, enable):
                assert model.attn.fused_attn is enable
                assert use_fused_attn() is use_fused_attn(experimental=True) is enable
                raise KeyError
            assert model.attn.fused_attn is True
            assert (use_fused_attn(), use_fused_attn(experimental=True)) == now
            assert torch.backends.mha.get_fastpath_enabled()
            assert torch.backends.cuda.flash_sdp_enabled()
    finally:
        set_fused_attn(before[0], experimental=before[1])


def hooks() -> list[int]:
    tables = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    return [len(table) for table in tables]


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("inside")


def test_nothing_stays_behind_when_forward_raises(tmp_path: Path) -> None:
    model = Toy()
    model.mlp.append(Raising())
    before, environment = hooks(), dict(os.environ)
    with pytest.raises(KeyError, match="inside"):
        profile_toy(model=model, fused_attention=False, trace_path=tmp_path / "trace.json")
    assert hooks() == before and dict(os.environ) == environment
    assert model.attn.fused_attn is True and not list(tmp_path.iterdir())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_model_and_its_hooks_are_not_touched() -> None:
    model = Toy()
    model.mlp.append(nn.BatchNorm1d(16))
    model.train()
    seen: list[str] = []
    handle = model.attn.register_forward_hook(lambda *_: seen.append("hook"))
    state = copy.deepcopy(model.state_dict())
    profile_toy(model=model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert seen and len(model.attn._forward_hooks) == 1
    handle.remove()


def test_scopes_end_with_their_module_also_if_it_raises() -> None:
    entered: list[str] = []

    class Scope:
        def __init__(self, part: str) -> None:
            self.part = part

        def __enter__(self) -> None:
            entered.append(self.part)

        def __exit__(self, *_: object) -> None:
            entered.remove(self.part)

    inner, outer = Raising(), nn.Sequential(Raising())
    seen: list[list[str]] = []

    class Catching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for module in (inner, outer):
                with pytest.raises(KeyError):
                    module(x)
                seen.append(list(entered))
            return x

    model = Catching()
    with scopes({model: "model", inner: "inner", outer: "outer", outer[0]: "last"}, Scope):
        model(torch.zeros(1))
        assert entered == []
    assert seen == [["model"], ["model"]]
    model(torch.zeros(1))
    assert seen[2:] == [[], []]


def test_inputs_made_in_inference_mode() -> None:
    """Composite operators on such tensors hide their parts from a dispatch mode."""
    model = Toy()
    with torch.inference_mode():
        images = torch.zeros(2, 3, 8, 8)
        inside = profile_operators(model, images, rounds=1)
    outside = profile_operators(model, images, rounds=1)
    assert table(inside) == table(outside) == table(profile_toy())


def test_trace_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trace.json"
    profile_toy(trace_path=path)
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"aten::addmm", "part: ffn"} <= names
    assert [file.name for file in path.parent.iterdir()] == ["trace.json"]


class Two(nn.Module):
    def forward(self, image: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return image * mask * scale


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: profile_operators(Two(), torch.zeros(1)),
            r"^inputs: Two.forward expected 2 inputs \(image, mask\), got 1$",
        ),
        (
            lambda: profile_operators(Toy(), (torch.zeros(1),) * 2),
            r"^inputs: Toy.forward expected 1 input \(x\), got 2$",
        ),
        (lambda: profile_toy(rounds=0), "rounds"),
        (lambda: profile_toy(device="cuda:7"), "^device: .* got 'cuda:7'"),
        (lambda: profile_toy(device="nowhere"), "^device: .* got 'nowhere'"),
    ],
)
def test_wrong_input_is_one_clear_line(call: Any, message: str) -> None:
    if message == "rounds":
        with pytest.raises(ValueError, match="^rounds: expected at least 1, got 0"):
            profile_operators(Toy(), torch.zeros(1, 3, 8, 8), rounds=0)
        return
    with pytest.raises(ValueError, match=message):
        call()


def test_two_inputs_are_taken() -> None:
    profile = profile_operators(Two(), (torch.zeros(1, 3, 8, 8), torch.zeros(8)), rounds=1)
    assert table(profile)["mul", "other"] == (2, 4 * (192 + 8 + 192) + 4 * (192 + 192), 0)


SIDE = 128  # pixels: large enough that our stem folds its BatchNorms, as at 224
IMAGE = torch.zeros(1, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def subjects() -> dict[str, nn.Module]:
    return {name: build(name, img_size=SIDE) for name in NAMED}


@pytest.mark.parametrize("name", NAMED)
def test_every_operator_of_the_named_models_has_a_category(
    subjects: dict[str, nn.Module], name: str
) -> None:
    """So "other" takes no time at all; and MACs are those of `count_macs`, calls those seen."""
    model = subjects[name]
    for fused in (False, True) if name.startswith(("deit", "swin")) else (None,):
        profile = profile_operators(model, IMAGE, rounds=1, fused_attention=fused)
        other = {row.operator for row in profile.rows if row.category == "other"}
        assert not other, f"no line in the table for {', '.join(sorted(other))}"
        assert profile.macs == count_macs(model, SIDE)
        assert all(row.calls for row in profile.rows), "an operator was counted but not timed"
    assert profile.model == name


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("deit_tiny_patch16_224", {"token mixing"}),
        ("swin_tiny_patch4_window7_224", {"token mixing", "other"}),
        ("efficientvit_m0", {"norm"}),  # folded, or inside the other parts
        ("mobilenetv3_small_100", {"attention"}),
    ],
)
def test_parts_of_known_models(
    subjects: dict[str, nn.Module], name: str, missing: set[str]
) -> None:
    profile = profile_operators(subjects[name], IMAGE, rounds=1)
    assert set(PARTS) - {row.module for row in profile.rows} == missing


def test_parts_of_ours_and_timm_s_are_the_same(subjects: dict[str, nn.Module]) -> None:
    """The same network in other classes: as many MACs in each part."""
    theirs = build("timm/efficientvit_m0", img_size=SIDE)
    macs = [
        profile_operators(model, IMAGE, rounds=1).by_module().set_index("module")["macs"]
        for model in (subjects["efficientvit_m0"], theirs)
    ]
    assert macs[0].to_dict() == macs[1].to_dict()


def test_parts_begin_where_their_modules_do() -> None:
    model = Toy()
    parts = parts_of(model)
    assert {name: parts[child] for name, child in model.named_children()} == {
        "patch_embed": "embedding",
        "norm1": "norm",
        "attn": "attention",
        "mlp": "ffn",
        "dwconv": "token mixing",
        "head": "head",
    }
    assert parts[model.attn.norm] == "attention" and parts[model.mlp[0]] == "ffn"


def test_a_part_whose_modules_are_called_one_by_one() -> None:
    """A container that is never called itself; and one scope for modules inside each other."""

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.stem:
                x = layer(x)
            return x

    profile = profile_operators(ByHand(), torch.zeros(1, 3, 4, 4), rounds=1)
    assert {row.module for row in profile.rows} == {"embedding"}
    entered: list[str] = []

    def scope(part: str) -> AbstractContextManager[None]:
        entered.append(part)
        return nullcontext()

    model = Toy()
    with scopes(parts_of(model), scope):
        model(torch.zeros(1, 3, 8, 8))
    assert entered == ["embedding", "norm", "attention", "ffn", "token mixing", "head"]


def test_parts_of_the_deployed_form(subjects: dict[str, nn.Module]) -> None:
    """Told by its own classes, since the convolutions are called as functions there."""
    deployed = build("deploy/efficientvit_m0", img_size=SIDE)
    same = deploy(subjects["efficientvit_m0"])
    assert type(deployed) is type(same)
    torch.testing.assert_close(deployed(IMAGE), same(IMAGE))
    profile = profile_operators(deployed, IMAGE, rounds=1)
    assert {row.category for row in profile.rows} <= set(CATEGORIES) - {"normalisation", "other"}
    macs = profile.by_module().set_index("module")["macs"]
    assert min(macs[["attention", "token mixing", "ffn", "embedding"]]) > 0
    assert macs["other"] <= 192 * 1000  # no more than the classifier


def test_the_tables_name_only_what_there_is() -> None:
    assert set(CATEGORY_OF.values()) == set(CATEGORIES) - {"other"}
    assert {rule.part for rule in RULES} == set(PARTS) - {"other"}
    names = torch._C._dispatch_get_all_op_names()
    known = {bare_name(name.partition(".")[0]) for name in names}
    # Kernels that only other builds of torch have, or are named outside of the dispatcher.
    elsewhere = {"linear_pointwise", "mkldnn_linear", "mkldnn_reorder_conv2d"}
    assert set(CATEGORY_OF) <= known | elsewhere


@pytest.mark.parametrize(
    ("operator", "category"),
    [
        ("aten::_softmax", "softmax"),
        ("aten::relu_", "element-wise"),
        ("aten::_to_copy", "reshape/copy"),
        ("mkldnn::_linear_pointwise", "matmul/conv"),
        ("aten::nonsense", "other"),
    ],
)
def test_categories(operator: str, category: str) -> None:
    assert category_of(operator) == category


def test_roofline_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are tiny: what is measured says nothing, only that and when it is."""
    monkeypatch.setattr(roofline, "_SECONDS", 0.0)
    monkeypatch.setattr(roofline, "_SIDES", {"cpu": (8, 16)})
    monkeypatch.setattr(roofline, "_COPIED_BYTES", {"cpu": 4096})
    roofline._measured.cache_clear()
    try:
        threads = torch.get_num_threads()
        first = roofline.measure_roofline(threads=1)
        assert min(first.peak_gmac_s, first.bandwidth_gb_s, first.dispatch_us) > 0
        assert (first.environment.threads, first.environment.precision) == (1, "float32")
        assert torch.get_num_threads() == threads
        assert roofline.measure_roofline("cpu", threads=1) is first
        half = roofline.measure_roofline(threads=1, dtype=torch.float64)
        assert half is not first and half.environment.precision == "float64"
    finally:
        roofline._measured.cache_clear()


def test_roofline_by_a_made_up_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 10-sided product in 1 µs is 1 GMAC/s; 2 x 500 bytes in 1 µs are 1 GB/s."""
    monkeypatch.setattr(roofline, "_SIDES", {"cpu": (5, 10)})
    monkeypatch.setattr(roofline, "_COPIED_BYTES", {"cpu": 500})
    monkeypatch.setattr(roofline, "_times", lambda *_: [1e-6, 3e-6, 2e-6])
    place = torch.device("cpu")
    assert roofline._peak_gmac_s(place, torch.float32) == pytest.approx(1)
    assert roofline._bandwidth_gb_s(place) == pytest.approx(1)
    assert roofline._dispatch_us(place) == pytest.approx(2 / roofline._CALLS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "^device: "),
        ({"threads": 0}, "^threads: expected at least 1, got 0"),
        ({"dtype": torch.int32}, "^dtype: expected a floating-point type, got torch.int32"),
    ],
)
def test_roofline_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roofline.measure_roofline(**options)


def test_subjects_are_found_by_name() -> None:
    state = torch.get_rng_state()
    ours, theirs = build("efficientvit_m0"), build("timm/efficientvit_m0")
    assert type(ours).__module__ == "evitlab.models.efficientvit"
    assert type(theirs).__module__ == "timm.models.efficientvit_msra"
    assert not ours.training and not theirs.training
    again = build("efficientvit_m0").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in ours.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert build("deit_tiny_patch16_224", img_size=64)(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "img_size", "message"),
    [
        ("efficientvit_m9", None, "^model: .* got 'efficientvit_m9'; did you mean 'efficientvit_m"),
        ("timm/deit_tiny", None, "^model: .* did you mean 'timm/deit_tiny_"),
        ("tim/resnet18", None, "^model: .* did you mean 'timm/resnet18'"),
        ("a/b/c", None, "^model: expected NAME, deploy/NAME, timm/NAME .* got 'a/b/c'"),
        ("deploy/resnet18", None, "^model: expected one of our own models, got 'deploy/resnet18'"),
        ("efficientvit_m0", 0, "^img_size: expected at least 1 pixel, got 0"),
    ],
)
def test_unknown_subjects(name: str, img_size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, img_size=img_size)


def test_profile_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "profiles.json"
    command = ["profile", "efficientvit_m0", "--img-size", "64"]
    options = ["--threads", "1", "--rounds", "1", "--json", str(record), "--out", str(tmp_path)]
    assert main([*command, *options, "--trace", str(tmp_path / "trace.json")]) == 0
    printed = capsys.readouterr().out
    for text in ("efficientvit_m0, batch 1, attention unfused", "normalisation", "token mixing",
                 "memory-bound %", "profiled / plain", "achieved / peak %"):  # fmt: skip
        assert text in printed
    saved = OperatorProfiles.load(record)
    assert [(p.model, p.fused_attention, p.img_size) for p in saved.profiles] == [
        ("efficientvit_m0", fused, (64, 64)) for fused in (False, True)
    ]
    assert saved.command.startswith("evitlab profile efficientvit_m0")
    names = {path.name for path in tmp_path.iterdir()}
    assert "fig2_profile.png" in names
    assert "trace-efficientvit_m0-fused.json" in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["efficientvit_m0", "--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
        (["efficientvit_m0", "--device", "cuda:7"], "device: expected one that torch can use"),
        (["efficientvit_m7"], "did you mean 'efficientvit_m"),
    ],
)
def test_profile_command_refuses(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
