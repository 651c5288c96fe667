"""Laws of the public functions that take models and images, whatever the sizes and types."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import pytest
import torch
from analyses import FAMILIES, fill, scattered
from hypothesis import given
from hypothesis import strategies as st
from laws import tried
from PIL import Image
from small_runs import one_line
from torch import Tensor

import evitlab
from evitlab.datasets.decoding import FORMATS, decode_all, decode_image

FAMILY = st.sampled_from(sorted(FAMILIES))
SIZE = st.tuples(st.integers(16, 48), st.integers(16, 48))
DTYPE = st.sampled_from([torch.float32, torch.float64])
LAYOUT = st.sampled_from([torch.contiguous_format, torch.channels_last])
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def build(family: str, size: tuple[int, int], in_chans: int = 3, classes: int = 5) -> Any:
    name, options = FAMILIES[family]
    return evitlab.create_model(
        name, img_size=size, in_chans=in_chans, num_classes=classes, **options
    )


@cache
def filled(family: str, size: tuple[int, int] = (32, 32)) -> Any:
    return fill(build(family, size))


def pictures(count: int, size: tuple[int, int], in_chans: int = 3, seed: int = 0) -> Tensor:
    return scattered((count, in_chans, *size), seed).float()


def test_create_model_builds_or_refuses(pytestconfig: pytest.Config) -> None:
    """What is built works; what would not is refused at once, in one line."""

    @tried(pytestconfig, 15)
    @given(
        FAMILY, st.tuples(st.integers(-1, 70), st.integers(-1, 70)), st.integers(-1, 5),
        st.integers(-1, 7), st.integers(1, 2),
    )  # fmt: skip
    def law(family: str, size: tuple[int, int], in_chans: int, classes: int, count: int) -> None:
        try:
            model = fill(build(family, size, in_chans, classes))
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            assert min(size) < 32 or in_chans < 1 or classes < 0, error
            return
        with torch.no_grad():
            logits = model(pictures(count, size, in_chans))
        assert logits.shape[0] == count and logits.isfinite().all()
        assert logits.ndim == 2 and (classes == 0 or logits.shape[1] == classes)

    law()


@pytest.mark.parametrize("given", [1.5, "32", None, (32,), (32, 32, 32), (32, "x"), float("nan")])
@pytest.mark.parametrize("family", FAMILIES)
def test_create_model_refuses_what_is_no_size(family: str, given: Any) -> None:
    with pytest.raises(ValueError, match="img_size") as raised:
        build(family, given)
    one_line(raised)


def test_deployed_models_compute_the_same(pytestconfig: pytest.Config) -> None:
    @tried(pytestconfig, 10)
    @given(FAMILY, SIZE, DTYPE, LAYOUT, st.integers(1, 3))
    def law(
        family: str, size: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format,
        count: int,
    ) -> None:  # fmt: skip
        model = fill(build(family, size)).to(dtype).to(memory_format=layout)
        images = pictures(count, size).to(dtype).contiguous(memory_format=layout)
        with torch.no_grad():
            expected, found = model(images), evitlab.deploy(model)(images)
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()

    law()


def test_costs_depend_on_shapes_alone(pytestconfig: pytest.Config) -> None:
    @tried(pytestconfig, 6, thorough=100)
    @given(
        FAMILY, SIZE, st.sampled_from([torch.float16, torch.bfloat16, torch.float64]), LAYOUT,
        st.sampled_from(["cpu", "meta"]),
    )  # fmt: skip
    def law(
        family: str, size: tuple[int, int], dtype: torch.dtype, layout: torch.memory_format,
        device: str,
    ) -> None:  # fmt: skip
        model = build(family, size)
        costs = evitlab.count_macs(model), evitlab.count_params(model)
        assert min(costs) > 0
        model = model.to(device, dtype).to(memory_format=layout)
        assert (evitlab.count_macs(model), evitlab.count_params(model)) == costs
        assert evitlab.count_macs(model, size) == costs[0]

    law()


def test_attention_is_a_distribution(pytestconfig: pytest.Config) -> None:
    @tried(pytestconfig, 10)
    @given(FAMILY, SIZE, DTYPE, st.integers(1, 3), st.integers(0, 99))
    def law(
        family: str, size: tuple[int, int], dtype: torch.dtype, count: int, seed: int
    ) -> None:
        model = fill(build(family, size)).to(dtype)
        with torch.no_grad(), evitlab.capture_attention(model) as blocks:
            model(pictures(count, size, seed=seed).to(dtype))
        assert blocks
        for block in blocks:
            assert block.maps.dtype == dtype and len(block.maps) == count * block.windows
            assert block.maps.min() >= 0
            assert (block.maps.sum(-1) - 1).abs().max() <= 1e-5
            product = block.maps @ block.values
            assert torch.allclose(product, block.outputs, atol=1e-5, rtol=1e-4)

    law()


def test_heads_are_alike_both_ways(pytestconfig: pytest.Config) -> None:
    @tried(pytestconfig, 8)
    @given(FAMILY, st.integers(2, 5), st.integers(1, 5), st.integers(0, 99))
    def law(family: str, count: int, batch_size: int, seed: int) -> None:
        images = pictures(count, (32, 32), seed=seed)
        found = evitlab.head_similarity(filled(family), images, batch_size=batch_size)
        assert found.images == count
        for block in found.blocks:
            for name in ("similarity", "correlation", "centred"):
                matrix = torch.tensor(getattr(block, name))
                assert matrix.shape == (block.num_heads,) * 2
                assert torch.allclose(matrix, matrix.T, atol=1e-5)
                assert matrix.abs().max() <= 1 + 1e-5
            assert all(-1e-5 <= value <= 1 + 1e-5 for value in block.entropy)

    law()


def test_attributions_have_the_images_shape(pytestconfig: pytest.Config) -> None:
    methods = ["integrated_gradients", "grad_cam", "occlusion", "head_ablation"]

    @tried(pytestconfig, 8, thorough=100)
    @given(FAMILY, st.sampled_from(methods), st.integers(1, 3), st.integers(0, 4), LAYOUT)
    def law(
        family: str, method: Any, count: int, target: int, layout: torch.memory_format
    ) -> None:
        images = pictures(count, (32, 32)).contiguous(memory_format=layout)
        steps = 2 if method == "integrated_gradients" else None
        patch = 16 if method == "occlusion" else None
        found = evitlab.attribute(
            filled(family), images, target, method=method, steps=steps, patch=patch
        )
        if method == "head_ablation":
            assert found.ndim == 3 and len(found) == count
            return
        assert found.shape == (count, 32, 32) and found.isfinite().all()

    law()


def test_pictures_of_any_mode_are_decoded(pytestconfig: pytest.Config) -> None:
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]

    @tried(pytestconfig, 40)
    @given(
        st.sampled_from(modes), st.sampled_from(FORMATS), st.integers(1, 40), st.integers(1, 40),
        st.binary(min_size=1, max_size=64), st.none() | SIZE,
    )  # fmt: skip
    def law(
        mode: str, kind: str, width: int, height: int, pixels: bytes, size: tuple[int, int] | None
    ) -> None:
        blank = Image.new(mode, (width, height))
        length = len(blank.tobytes())
        image = Image.frombytes(mode, blank.size, (pixels * length)[:length])
        file = io.BytesIO()
        try:
            image.save(file, kind)
        except (OSError, ValueError):  # that format has no such mode
            return
        decoded = decode_image(file.getvalue())
        assert (decoded.mode, decoded.size) == ("RGB", (width, height))
        found, kept = decode_all(2, lambda _: (file.getvalue(), "x"), img_size=size)
        assert found.dtype == "uint8" and kept.tolist() == [0, 1]
        assert found.shape == (2, 3, *(size or (height, width)))

    law()


def test_average_precision_is_a_percentage(pytestconfig: pytest.Config) -> None:
    pytest.importorskip("faster_coco_eval", reason="box AP needs faster-coco-eval")
    side = st.floats(0.5, 60)
    box = st.tuples(st.floats(-5, 60), st.floats(-5, 60), side, side).map(list)
    number = st.integers(1, 3)
    truths = st.lists(st.tuples(number, number, box), min_size=1, max_size=6)
    results = st.lists(st.tuples(number, number, box, st.floats(0, 1)), max_size=8)

    @tried(pytestconfig, 15)
    @given(truths, results)
    def law(true: list[Any], found: list[Any]) -> None:
        annotations = [
            {"id": i, "image_id": image, "category_id": category, "bbox": place}
            for i, (image, category, place) in enumerate(true, start=1)
        ]
        truth = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64}
                       for i in (1, 2, 3)],
            "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
            "annotations": annotations,
        }  # fmt: skip
        given_results = [
            {"image_id": image, "category_id": category, "bbox": place, "score": score}
            for image, category, place, score in found
        ]
        ap = evitlab.box_ap(truth, given_results)
        whole = ap.ap, ap.ap50, ap.ap75, ap.ar1, ap.ar10, ap.ar100
        by_size = ap.ap_small, ap.ap_medium, ap.ap_large, ap.ar_small, ap.ar_medium, ap.ar_large
        assert all(value is None or 0 <= value <= 100 + 1e-9 for value in (*whole, *by_size))
        assert None not in whole and ap.boxes == len(true)
        perfect = [{**one, "score": 1.0} for one in annotations]
        assert evitlab.box_ap(truth, perfect).ap50 >= ap.ap50 - 1e-6

    law()
