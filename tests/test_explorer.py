"""The explorer without a browser: what is chosen is shown, and a mistake changes nothing."""

from __future__ import annotations

import gc
import io
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from randomised import randomise
from torch import Tensor, nn
from tqdm.std import tqdm as std_tqdm

from evitlab import (
    AttentionExplorer,
    attribute,
    capture_attention,
    create_model,
    deploy,
    head_similarity,
    open_dataset,
)
from evitlab.analysis.ablation import ablate_heads
from evitlab.analysis.layout import TokenLayout
from evitlab.explorer.cost import measure_explorer
from evitlab.explorer.pictures import read_pictures
from evitlab.explorer.session import Session
from evitlab.explorer.subject import Block
from evitlab.records import ExplorerCost
from evitlab.records.view import AttentionView
from evitlab.resources import data_dir
from evitlab.training.augment import normalize

CLASSES = 7


def cascade(**changes: Any) -> nn.Module:
    options: dict[str, Any] = {"img_size": 64, "num_classes": CLASSES, "window_size": (4, 4, 4)}
    return randomise(create_model("efficientvit_m0_p8", **(options | changes))).eval()


def swin() -> nn.Module:
    model = create_model("swin_t_p2", img_size=32, num_classes=CLASSES, embed_dim=24)
    return randomise(model).eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, num_classes=CLASSES, depth=3
    )
    return model.eval()


def view_of(session: Session) -> AttentionView:
    return session.views[0]


def pictures(count: int = 3, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def explorer() -> AttentionExplorer:
    return AttentionExplorer({"cascade": cascade(), "vit": vit()}, pictures())


def says(explorer: AttentionExplorer) -> str:
    message: str = explorer.controls.message.value
    return message if "evitlab-wrong" in message else ""


# What a session shows is what the model computed.


@pytest.mark.parametrize("build", [cascade, swin, vit], ids=["cascade", "swin", "vit"])
@torch.no_grad()
def test_maps_are_those_of_the_query(build: Any) -> None:
    model, x = build(), pictures(1, {cascade: 64, swin: 32, vit: 48}[build])
    session = Session(model, x)
    with capture_attention(model) as blocks:
        model(normalize(x, *((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
              if build is not vit else (x / 255 - 0.5) / 0.5)  # fmt: skip
    for number, block in enumerate(blocks, start=1):
        assert block.layout is not None
        rows, columns = block.layout.grid
        for query in ((0, 0), (rows - 1, columns // 2)):
            session.select(block=number, query=query)
            view = view_of(session)
            window, token = block.layout.find(*query)
            row = block.by_image()[0, window, :, token]  # [h, M]
            seen = int((row[0] > 1e-30).sum())
            expected = block.by_image().new_zeros(block.num_heads, *block.layout.index.shape)
            expected[:, window] = row[:, block.layout.prefix :]
            index = block.layout.index.flatten()
            placed = torch.zeros(block.num_heads, rows * columns)
            placed[:, index[index >= 0]] = expected.flatten(1)[:, index >= 0]
            found = torch.from_numpy(np.nan_to_num(view.maps)) / seen
            torch.testing.assert_close(found.flatten(1), placed, rtol=1e-4, atol=1e-6)
            assert view.query == query and view.grid == (rows, columns)
            if view.class_weights is not None:
                torch.testing.assert_close(
                    torch.from_numpy(view.class_weights) / seen, row[:, 0], rtol=1e-4, atol=1e-6
                )


def test_windows_hide_the_rest() -> None:
    session = Session(cascade(), pictures())
    session.select(block=1, query=(0, 0))
    view = view_of(session)
    assert view.window == (4, 4) and view.grid == (8, 8)
    assert np.isfinite(view.maps[:, :4, :4]).all()
    assert np.isnan(view.maps[:, 4:]).all() and np.isnan(view.maps[:, :, 4:]).all()


def test_one_window_is_no_window() -> None:
    session = Session(cascade(), pictures())
    session.select(block=2)
    assert view_of(session).window is None and view_of(session).grid == (4, 4)


def test_a_shifted_window_wraps_around() -> None:
    session = Session(swin(), pictures())
    session.select(block=2, query=(0, 0))
    view = view_of(session)
    assert view.shift != (0, 0)
    seen = np.isfinite(view.maps[0])
    assert seen[0, 0] and not seen[view.window[0] if view.window else 0, 0]


def test_blocks_share_the_place_of_the_query() -> None:
    session = Session(cascade(), pictures())
    session.select(block=1, query=(7, 2))
    session.select(block=2)
    assert view_of(session).query == (3, 1)
    session.select(block=1)
    assert view_of(session).query == (7, 2)


def test_the_class_token_asks_where_there_is_one() -> None:
    session = Session({"vit": vit(), "cascade": cascade()}, pictures())
    session.select(query="class")
    assert view_of(session).query is None
    session.select(model="cascade")
    assert view_of(session).query is not None and not view_of(session).has_class_token
    with pytest.raises(ValueError, match="query: expected .* has no class token"):
        session.select(query="class")
    session.select(model="vit")
    assert view_of(session).query is None, "the choice is kept for models that have one"


@torch.no_grad()
def test_probabilities_with_and_without_a_head() -> None:
    model, x = cascade(), pictures(1)
    session = Session(model, x)
    session.ablate(2, 3, off=True)
    view = view_of(session)
    inputs = normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    before = model(inputs).softmax(1)[0]
    with ablate_heads(model, {2: [3]}):
        after = model(inputs).softmax(1)[0]
    assert view.off == ((2, 3),)
    for name, shown_before, shown_after in view.classes:
        k = int(name.removeprefix("class "))
        assert shown_before == pytest.approx(before[k].item(), rel=1e-4)
        assert shown_after == pytest.approx(after[k].item(), rel=1e-4)
    assert not torch.allclose(before, after)
    session.restore()
    assert all(after is None for *_, after in view_of(session).classes)


def test_the_new_first_class_is_shown_too() -> None:
    class Tipped(nn.Module):
        """Says class 0, and another class without its only attention."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = cascade(depth=(1, 1, 1))
            self.num_classes = CLASSES

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    session = Session(Tipped(), pictures())
    for block in (1, 2, 3):
        for head in (1, 2, 3, 4):
            session.ablate(block, head, off=True)
    view = view_of(session)
    best = max(range(CLASSES), key=lambda k: session.look.probabilities[k])
    assert f"class {best}" in [name for name, *_ in view.classes]


def test_entropy_distance_and_object_by_hand() -> None:
    """Heads that attend evenly: entropy 1, all at chance, the object gets its share of the area."""
    model = cascade(window_size=(8, 8, 8))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attention_biases" in name or ".qkvs." in name or ".dws." in name:
                weight.zero_()
    data = open_dataset("embedded", "val", img_size=64, limit=3)
    view = Session(model, data).views[0]
    np.testing.assert_allclose(view.entropy, 1, atol=1e-5)
    np.testing.assert_allclose(view.maps, 1, rtol=1e-4)
    np.testing.assert_allclose(view.similarity, 1, atol=1e-5)
    centres = (np.stack(np.meshgrid(range(8), range(8)), -1).reshape(-1, 2) + 0.5) / 8
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1).mean() / 2**0.5
    np.testing.assert_allclose(view.distance, gaps, rtol=1e-4)
    assert view.mask is not None and view.on_object is not None
    np.testing.assert_allclose(view.on_object, view.mask.mean(), atol=0.01)


def test_a_view_as_a_table() -> None:
    session = Session(cascade(), open_dataset("embedded", "val", img_size=64, limit=2))
    session.ablate(1, 3, off=True)
    frame = view_of(session).to_frame()
    assert list(frame["head"]) == [1, 2, 3, 4]
    assert list(frame["off"]) == [False, False, True, False]
    np.testing.assert_array_equal(frame["entropy"], view_of(session).entropy)
    assert Session(cascade(), pictures()).views[0].to_frame()["on_object"].isna().all()


def test_distance_on_a_wide_picture() -> None:
    """In pixels: a step to the side is as long as one down, though the picture is wider."""
    model = cascade(img_size=(32, 64), patch_size=8, window_size=(8, 8, 8))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attention_biases" in name or ".qkvs." in name or ".dws." in name:
                weight.zero_()
    view = view_of(Session(model, pictures()))
    assert view.grid == (4, 8) and view.size == (32, 64)
    centres = np.stack(np.meshgrid(range(8), range(4)), -1).reshape(-1, 2) * 8.0
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1).mean() / np.hypot(32, 64)
    np.testing.assert_allclose(view.distance, gaps, rtol=1e-4)


def test_distance_leaves_the_class_token_out() -> None:
    """Heads that look at it alone, but for what they spread evenly, are not short-sighted."""
    maps = torch.full((1, 1, 10, 10), 0.1 / 9)
    maps[..., 0] = 0.9
    layout = TokenLayout((3, 3), (3, 3), prefix=1)
    block = Block(1, "attn", "global", maps, layout, layout, (48, 48), None)
    even = Block(1, "attn", "global", torch.full_like(maps, 0.1), layout, layout, (48, 48), None)
    np.testing.assert_allclose(block.distance, even.distance, rtol=1e-5)


def test_models_that_do_not_say_what_they_are() -> None:
    """A wrapper knows neither its classes nor its size; no classes are no predictions."""
    inner = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2).eval()
    view = view_of(Session(nn.Sequential(nn.Identity(), inner), pictures()))
    assert [name for name, *_ in view.classes] and view.size == (224, 224)
    assert {name for name, *_ in view.classes} == {"class 0", "class 1", "class 2"}
    headless = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2).eval()
    assert view_of(Session(headless, pictures())).classes  # features, by their number
    pooled = nn.Sequential(headless, nn.Unflatten(1, (2, -1)))
    with pytest.raises(ValueError, match=r"model: expected logits \[1, classes\] .* \[1, 2, 96\]"):
        Session(pooled, pictures())


def test_deployed_models_keep_size_and_class_token() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=4, depth=2).eval()
    session = Session(deploy(model), pictures())
    assert view_of(session).size == (96, 96) and view_of(session).has_class_token
    session.select(query="class")
    assert view_of(session).query is None


def test_overlays_are_those_of_the_model_with_heads_off() -> None:
    session = Session(cascade(), pictures(1))
    session.select(overlay="grad_cam")
    before = view_of(session).heat
    for head in (1, 2, 3, 4):
        session.ablate(6, head, off=True)
    after = view_of(session).heat
    assert before is not None and after is not None and not np.allclose(before, after)


def test_weights_go_to_names_alone() -> None:
    session = Session({"mine": cascade(), "m0": "efficientvit_m0_p4"}, pictures(), weights="hub")
    with pytest.raises(FileNotFoundError, match="cannot be fetched"):
        session.select(model="m0")
    assert session.state.model == "mine"
    with pytest.raises(ValueError, match="weights: expected a model that is given by its name"):
        Session({"mine": cascade()}, pictures(), weights="hub")


def test_a_head_beside_itself_is_no_pair() -> None:
    session = Session(cascade(), pictures())
    session.select(head=2, pair=2)
    assert view_of(session).pair is None
    session.select(pair=3)
    assert view_of(session).pair == 3


def test_a_compared_model_follows() -> None:
    session = Session({"cascade": cascade(), "vit": vit()}, pictures())
    session.select(compare="vit", block=6, query=(0, 0))
    mine, theirs = session.views
    assert theirs is not None and (theirs.model, theirs.block, theirs.query) == ("vit", 3, (0, 0))
    session.select(block=1, query=(7, 7), image=1)
    _, theirs = session.views
    assert theirs is not None and (theirs.block, theirs.query) == (1, (2, 2))
    session.ablate(off=True)
    assert session.views[1] is not None and session.views[1].off == ()
    session.select(compare="")
    assert session.views[1] is None


@pytest.mark.parametrize("overlay", ["rollout", "grad_cam", "integrated_gradients"])
@pytest.mark.parametrize("build", [cascade, vit], ids=["cascade", "vit"])
def test_other_overlays(build: Any, overlay: str) -> None:
    session = Session(build(), pictures(1))
    session.select(overlay=overlay)
    heat = view_of(session).heat
    assert heat is not None and heat.ndim == 2
    assert 0 <= heat.min() and heat.max() == pytest.approx(1) and heat.std() > 0


def test_importance_is_the_loss_of_probability() -> None:
    session = Session(cascade(), pictures(1))
    session.select(importance=True)
    found = view_of(session).importance
    assert found is not None and found.shape == (6, 4)
    session.ablate(3, 2, off=True)
    name, before, after = view_of(session).classes[0]
    assert after is not None and found[2, 1] == pytest.approx(before - after, abs=1e-5)


# Wrong choices.


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"block": 0}, "block: expected 1 to 6, got 0"),
        ({"block": 7}, "block: expected 1 to 6, got 7"),
        ({"head": 5}, "head: expected 1 to 4, got 5"),
        ({"head": 1.5}, "head: expected 1 to 4, got 1.5"),
        ({"pair": 9}, "pair: expected 1 to 4, got 9"),
        ({"image": 3}, "image: expected 0 to 2, got 3"),
        ({"image": True}, "image: expected 0 to 2, got True"),
        ({"query": (8, 0)}, "query row: expected 0 to 7, got 8"),
        ({"query": (0, -1)}, "query column: expected 0 to 7, got -1"),
        ({"query": "centre"}, r"query: expected \(row, column\) or 'class', got 'centre'"),
        ({"query": 3}, r"query: expected \(row, column\) or 'class', got 3"),
        ({"overlay": "atention"}, "overlay: .*did you mean 'attention'"),
        ({"model": "cascades"}, "model: .*did you mean 'cascade'"),
        ({"compare": "vits"}, "compare: .*did you mean 'vit'"),
        ({"block": 2, "head": 9}, "head: expected 1 to 4, got 9"),
    ],
)
def test_a_wrong_choice_changes_nothing(choice: dict[str, Any], message: str) -> None:
    session = Session({"cascade": cascade(), "vit": vit()}, pictures())
    before = session.state, session.views
    with pytest.raises(ValueError, match=message):
        session.select(**choice)
    assert (session.state, session.views) == before


def test_a_wrong_head_to_turn_off() -> None:
    session = Session(cascade(), pictures())
    for block, head, message in ((9, 1, "block: expected 1 to 6"), (1, 9, "head: expected 1 to 4")):
        with pytest.raises(ValueError, match=message):
            session.ablate(block, head, off=True)
    assert not session.state.off


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: expected at least one picture, got none"),
        (torch.zeros(0, 3, 8, 8), "at least one picture, got none"),
        (torch.randn(2, 3, 8, 8), "expected floats of 0 to 1, got -.* not normalised"),
        (torch.full((1, 3, 8, 8), torch.nan), "expected floats of 0 to 1, got nan"),
        (torch.zeros(3, 8, 8), r"expected \[N, 3, H, W\] or \[N, H, W, 3\], got \[3, 8, 8\]"),
        (torch.zeros(2, 4, 8, 8), r"expected \[3, H, W\] or \[H, W, 3\] each, got \[4, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "expected uint8 or floats of 0 to 1, got"),
        ([7], "expected paths, PIL images or arrays, got int as picture 0"),
        (7, "expected a path, the name of a data set, .* got int"),
        (["missing.png"], "missing.png: expected a picture or a folder of them, found nothing"),
        ("no such set", "neither an existing path nor a data set"),
    ],
)
def test_wrong_pictures(images: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Session(cascade(), images)


def test_wrong_labels_and_models() -> None:
    with pytest.raises(ValueError, match="labels: expected 3, one per picture, got 2"):
        Session(cascade(), pictures(), labels=[1, 2])
    with pytest.raises(ValueError, match="model: expected attention of a known kind, got Linear"):
        Session(nn.Linear(2, 2), pictures())
    with pytest.raises(ValueError, match="model: expected attention of a known kind, got ResNet"):
        Session("resnet18", pictures())
    with pytest.raises(ValueError, match="model: expected at least one, got none"):
        Session({}, pictures())
    with pytest.raises(ValueError, match="model: expected a module or a name, got int"):
        Session(7, pictures())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights: expected none beside a model"):
        Session(cascade(), pictures(), weights="hub")


# Pictures from anywhere.


def test_all_kinds_of_pictures_are_the_same(tmp_path: Path) -> None:
    x = pictures(2)
    arrays = x.permute(0, 2, 3, 1).numpy()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    sources: list[Any] = [
        x, x.float() / 255, arrays, list(x), list(arrays), [Image.fromarray(a) for a in arrays],
        tmp_path, str(tmp_path), sorted(tmp_path.glob("*.png")),
    ]  # fmt: skip
    for source in sources:
        found = read_pictures(source, None, (64, 64))
        assert len(found) == 2
        for picture, array in zip(found, arrays, strict=True):
            assert np.array_equal(picture.read(), array)
    assert len(read_pictures(tmp_path / "1.png", None, (64, 64))) == 1


def test_pictures_are_cut_to_what_the_model_takes() -> None:
    session = Session(cascade(), [Image.new("RGB", (300, 200), "red")])
    assert view_of(session).picture.shape == (64, 64, 3)
    assert (view_of(session).picture == [255, 0, 0]).all()


def test_labels_by_number_and_name() -> None:
    model: Any = cascade()
    model.class_names = tuple("abcdefg")
    assert view_of(Session(model, pictures(2), labels=[2, 0])).label == "c"
    assert Session(model, pictures(2), labels=["cat", "dog"]).views[0].label == "cat"
    assert Session(model, pictures(2), labels=torch.tensor([99, 0])).views[0].label == "class 99"
    right: list[Any] = [[np.int64(2), np.int64(0)], [torch.tensor(2), torch.tensor(0)], (2, 0)]
    for given in right:
        assert view_of(Session(model, pictures(2), labels=given)).label == "c"
    wrong: list[Any] = [2, "ab"]
    for given in wrong:
        with pytest.raises(ValueError, match="labels: expected one per picture, got"):
            Session(model, pictures(2), labels=given)
    assert view_of(Session(model, pictures(2))).label is None
    data = open_dataset("embedded", "val", img_size=64, limit=4)
    view = Session(model, data).views[0]
    assert view.label == data.class_names[int(data.labels[0])] and view.mask is not None


def test_a_broken_file_in_a_folder_is_passed_by(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    session = Session(cascade(), tmp_path)
    with pytest.raises(ValueError, match="b.png: not an image file"):
        session.select(image=1)
    assert session.state.image == 0


# The widgets.


CHANGES: dict[str, tuple[str, Any]] = {
    "image": ("image", 2), "block": ("block", 2), "head": ("head", 3), "model": ("model", "vit"),
    "compare": ("compare", "vit"), "overlay": ("overlay", "rollout"),
    "head off": ("head_off", True), "importance": ("importance", True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_control_changes_the_picture(explorer: AttentionExplorer, change: str) -> None:
    name, value = CHANGES[change]
    before = explorer._picture.value
    words = explorer._picture.description
    # As a message of the frontend arrives.
    widget = getattr(explorer.controls, name)
    index = {"model": 1, "compare": 2, "overlay": 1}.get(name)
    widget.set_state({"index": index} if index is not None else {"value": value})
    assert explorer._picture.value != before, says(explorer)
    assert explorer._picture.value[:8] == b"\x89PNG\r\n\x1a\n"
    assert not says(explorer)
    if name not in ("compare", "importance"):
        assert explorer._picture.description != words


def test_the_class_token_is_a_query(explorer: AttentionExplorer) -> None:
    controls = explorer.controls
    assert controls.class_token.disabled
    explorer.select(model="vit")
    assert not controls.class_token.disabled
    before = explorer._picture.value
    controls.class_token.value = True
    assert explorer.view.query is None and explorer._picture.value != before
    assert controls.class_token.value
    send(explorer, {"kind": "key", "key": "ArrowDown"})
    assert explorer.session.views[0].query == (1, 1) and not controls.class_token.value


def send(explorer: AttentionExplorer, content: dict[str, Any]) -> None:
    """A message from the browser."""
    explorer._picture._handle_custom_msg(content, [])


def test_clicks_and_keys_move_the_query(explorer: AttentionExplorer) -> None:
    explorer.select(query=(4, 4))
    for key, query in (("ArrowUp", (3, 4)), ("ArrowLeft", (3, 3)), ("ArrowDown", (4, 3)),
                       ("ArrowRight", (4, 4))):  # fmt: skip
        send(explorer, {"kind": "key", "key": key})
        assert explorer.view.query == query
    explorer.select(query=(0, 0))
    before = explorer._picture.value
    send(explorer, {"kind": "key", "key": "ArrowUp"})  # at the border it stays
    assert explorer.view.query == (0, 0) and explorer._picture.value == before
    found = set()
    for x in np.linspace(0.01, 0.99, 17):
        for y in np.linspace(0.01, 0.99, 17):
            send(explorer, {"kind": "click", "x": float(x), "y": float(y)})
            found.add((explorer.view.query, explorer.view.head, explorer.view.pair))
            assert not says(explorer)
    assert len({query for query, *_ in found}) > 5, "no patch can be clicked"
    assert {head for _, head, _ in found} == {1, 2, 3, 4}, "no head can be clicked"
    assert len({pair for *_, pair in found}) > 2, "no pair can be clicked"


def test_a_click_into_the_other_model_asks_there_too(explorer: AttentionExplorer) -> None:
    """At the very patch that was clicked, also where the first model's grid is coarser."""
    explorer.select(compare="vit", block=6)
    assert explorer.view.query_grid == (2, 2)
    shown = set()
    places = np.meshgrid(np.linspace(0, 0.3, 15), np.linspace(0, 1, 80))
    for x, y in np.stack(places, -1).reshape(-1, 2):
        hit = explorer._canvas.locate(x, y)
        if hit is not None and (hit.part, hit.model) == ("query", 1):
            send(explorer, {"kind": "click", "x": float(x), "y": float(y)})
            theirs = explorer.session.views[1]
            assert theirs is not None and theirs.query == (hit.row, hit.column)
            shown.add(theirs.query)
    assert len(shown) == 9


def test_what_cannot_be_chosen_is_disabled(explorer: AttentionExplorer) -> None:
    controls = explorer.controls
    assert controls.restore.disabled and not controls.model.disabled
    explorer.ablate()
    assert not controls.restore.disabled and controls.head_off.value
    controls.restore.click()
    assert controls.restore.disabled and not controls.head_off.value
    alone = AttentionExplorer(cascade(), pictures(1))
    assert alone.controls.image.disabled and alone.controls.model.disabled
    assert alone.controls.compare.disabled and alone.controls.class_token.disabled


def test_uploads_and_paths(explorer: AttentionExplorer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 70), "green").save(buffer, "PNG")
    upload(explorer, "green.png", buffer.getvalue())
    assert explorer.view.picture_name == "green.png" and explorer.session.state.image == 3
    before = explorer._picture.value
    upload(explorer, "broken.png", b"nothing")
    assert "broken.png: not an image file" in says(explorer)
    assert explorer._picture.value == before and len(explorer.session.pictures) == 4
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    explorer.controls.path.value = str(tmp_path / "blue.png")
    assert explorer.view.picture_name == "blue.png" and not says(explorer)
    assert explorer.controls.path.value == ""
    explorer.controls.path.value = str(tmp_path / "nothing")
    assert "found nothing" in says(explorer) and explorer.view.picture_name == "blue.png"
    explorer.controls.block.value = 2  # alive
    assert explorer.view.block == 2 and not says(explorer)


def upload(explorer: AttentionExplorer, name: str, content: bytes) -> None:
    """As ipywidgets' own tests of the upload do it."""
    file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content),
            "last_modified": 0}  # fmt: skip
    explorer.controls.upload.set_state({"value": [file]})


def test_a_model_that_cannot_be_opened_is_a_message() -> None:
    explorer = AttentionExplorer({"ours": cascade(), "theirs": "resnet18"}, pictures())
    before = explorer._picture.value
    explorer.controls.model.value = "theirs"
    assert "expected attention of a known kind" in says(explorer)
    assert explorer.controls.model.value == "ours" and explorer._picture.value == before


def test_the_code_makes_the_same_view_again(tmp_path: Path) -> None:
    import evitlab

    models, images = {"cascade": cascade(), "vit": vit()}, pictures()
    explorer = AttentionExplorer(models, images)
    explorer.select(
        model="vit", compare="cascade", image=1, block=2, head=3, pair=1, query="class",
        overlay="rollout", importance=True,
    ).ablate(1, 2).ablate(3, 1)  # fmt: skip
    line = explorer.code()
    assert explorer.controls.code.value == line
    assert line.endswith('.save("view")')
    again = eval(line.removesuffix('.save("view")'), {"evitlab": evitlab, "models": models,
                                                      "images": images})  # fmt: skip
    assert again.session.state == explorer.session.state
    assert again.render() == explorer.render()
    named = AttentionExplorer("efficientvit_m0_cifar10", "embedded")
    assert named.code().startswith(
        "evitlab.AttentionExplorer('efficientvit_m0_cifar10', 'embedded').select(image=0, block=1"
    )


def test_the_code_brings_added_pictures_back(explorer: AttentionExplorer, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    explorer.add(tmp_path / "blue.png")
    call = f".add({str(tmp_path / 'blue.png')!r}).select(model='cascade', image=3"
    assert call in explorer.code()


def test_errors_that_are_no_mistakes_reach_the_log_and_the_reader(
    explorer: AttentionExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    before = explorer._picture.value
    with monkeypatch.context() as patch:
        patch.setattr(explorer.session, "select", fail)
        with pytest.raises(KeyError):
            explorer.controls.block.value = 3
    assert "a bug" in says(explorer)
    assert explorer.controls.block.value == 1 and explorer._picture.value == before
    explorer.controls.block.value = 2
    assert explorer.view.block == 2 and not says(explorer)


def test_callbacks_and_cells_take_turns(explorer: AttentionExplorer) -> None:
    """JupyterLab runs callbacks in a thread of their own, beside the cells."""
    model = explorer.session.subject("vit").model.train()
    flags = [getattr(module, "fused_attn", None) for module in model.modules()]
    failed: list[BaseException] = []

    def callbacks() -> None:
        try:
            for i in range(12):
                explorer.select(model=("vit", "cascade")[i % 2], image=i % 3, query=(i % 3, 1))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=callbacks)
    thread.start()
    for _ in range(6):
        head_similarity(model, pictures(2, 48))
        attribute(model, pictures(1, 48), method="grad_cam")
    thread.join(60)
    assert not failed and not thread.is_alive()
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert [getattr(module, "fused_attn", None) for module in model.modules()] == flags


def test_no_bar_is_begun_beside_the_explorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Voila's page a bar that is gone again leaves an error behind."""
    begun: list[bool] = []
    start = std_tqdm.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        begun.append(not self.disable)

    monkeypatch.setattr(std_tqdm, "__init__", noted)
    explorer = AttentionExplorer("efficientvit_m0_embedded", "embedded")
    explorer.select(overlay="integrated_gradients", importance=True)
    assert begun and not any(begun)
    head_similarity(cascade(), pictures())
    assert begun[-1], "bars are there again"


def test_save_writes_png_and_svg(explorer: AttentionExplorer, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    png, svg = explorer.save(tmp_path / "view")
    with Image.open(png) as shown:
        assert shown.width >= 1000
    assert svg.read_text().lstrip().startswith("<?xml")
    assert explorer.save(tmp_path / "view.svg") == (png, svg)
    monkeypatch.chdir(tmp_path)
    explorer.controls.save.click()
    explorer.controls.save.click()
    assert "attention_cascade_2.png" in explorer.controls.message.value
    assert len(list(tmp_path.glob("attention_cascade_*"))) == 4


def test_the_browser_says_how_much_room_there_is(explorer: AttentionExplorer) -> None:
    wide = explorer._picture.value
    explorer._picture.set_state({"room": 520})
    narrow = explorer._picture.value
    assert Image.open(io.BytesIO(narrow)).width == explorer._picture.shown_width == 520
    explorer._picture.set_state({"dark": True, "pixel_ratio": 2.0})
    dark = Image.open(io.BytesIO(explorer._picture.value)).convert("L")
    assert dark.width == 1040 and np.asarray(dark)[:4].mean() < 60 and wide != narrow
    explorer._picture.set_state({"room": 5})
    assert explorer._picture.shown_width >= 400


def test_what_is_copied_is_the_code(explorer: AttentionExplorer,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    sent: list[Any] = []
    monkeypatch.setattr(explorer._picture, "send", sent.append)
    explorer.controls.copy.click()
    assert sent == [{"kind": "copy", "text": explorer.code()}]
    send(explorer, {"kind": "copied", "done": True})
    assert "copied" in explorer.controls.message.value and not says(explorer)
    send(explorer, {"kind": "copied", "done": False})
    assert "select the text" in says(explorer)


def test_words_where_no_widget_can_be_shown(explorer: AttentionExplorer) -> None:
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "cascade" in data["text/plain"] and "\n" not in data["text/plain"]


@pytest.mark.slow
def test_nothing_is_left_behind_by_many_changes() -> None:
    model = cascade()
    modes = [module.training for module in model.train().modules()]
    explorer = AttentionExplorer(model, pictures())

    def some(start: int) -> int:
        for i in range(start, start + 6):
            explorer.select(image=i % 3, block=1 + i % 6, head=1 + i % 4, query=(i % 2, 0))
            explorer.ablate(1, 1 + i % 4, off=i % 3 == 0)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]  # what Python and NumPy hold, in bytes

    some(0)  # untraced, which takes a third of the time
    tracemalloc.start()
    try:
        before = some(6)
        assert some(12) <= before + 300_000, "memory piles up"
    finally:
        tracemalloc.stop()
    assert len(explorer.session.subject(explorer.session.models[0])._kept) <= 12
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# What it costs.


def test_cost_is_measured_step_by_step(tmp_path: Path) -> None:
    record = measure_explorer(("efficientvit_m0_cifar10",), rounds=2, interactions=5, threads=1)
    frame = record.to_frame()
    assert list(frame["step"]) == ["query", "head", "block", "head off", "seen image", "new image"]
    assert (frame["median_ms"] > 0).all() and (frame["slowest_ms"] >= frame["high_ms"]).all()
    assert record.hooks_left == 0 and (record.peak_mib is None or record.peak_mib > 100)
    assert ExplorerCost.load(record.save(tmp_path / "cost.json")) == record


def test_cost_of_nothing() -> None:
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        measure_explorer(rounds=0)


def test_the_recorded_cost_keeps_what_was_promised() -> None:
    """150 ms for a step, 1 s for a new image, flat memory: as `evitlab bench` recorded it."""
    record = ExplorerCost.load(data_dir() / "results" / "explorer.json")
    medians = {(row.model, row.step): row.median_ms for row in record.rows}
    for step in ("query", "head", "block"):
        assert medians["efficientvit_m4", step] <= 150
    assert medians["efficientvit_m4", "new image"] <= 1000
    assert record.interactions >= 1000 and record.hooks_left == 0
    assert record.peak_mib is not None and record.peak_mib_early is not None
    assert record.peak_mib - record.peak_mib_early < 50
