"""Boxes drawn on pictures, and the pictures that they are drawn on: files, folders, videos."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from evitlab.datasets.frames import Frames
from evitlab.figures import detections
from evitlab.figures.detections import class_color, draw_boxes
from evitlab.figures.style import PALETTE

Area = tuple[int, int, int, int]


class Drawn:
    """What was drawn: the rectangles and the texts, by what draws them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plates: list[tuple[Area, str, int]] = []
        letter = detections._letter

        def noted(draw: ImageDraw.ImageDraw, plate: Any) -> None:
            self.plates.insert(0, (plate.area, plate.text, plate.points))  # drawn best last
            letter(draw, plate)

        monkeypatch.setattr(detections, "_letter", noted)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


def overlap(one: Area, other: Area) -> bool:
    return (
        one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
    )


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def test_a_box_and_its_plate(drawn: Drawn) -> None:
    picture = Image.new("RGB", (640, 480), "black")
    shown = draw_boxes(picture, [(100, 120, 300, 400)], [1], class_names=("a", "dog"), scores=[0.5])
    pixels = np.asarray(shown)
    assert picture.getextrema() == ((0, 0),) * 3, "the picture itself stays as it is"
    assert shown.size == picture.size
    # A white line along the edge of the box, its colour beside it; inside and outside nothing.
    assert pixels[260, 100].tolist() == [255] * 3 and pixels[399, 200].tolist() == [255] * 3
    assert tuple(pixels[260, 102]) == rgb(PALETTE[1])
    assert not pixels[150:370, 130:270].any() and not pixels[401:].any()
    ((area, text, _),) = drawn.plates
    assert text == "dog 0.50"
    assert area[0] == 100 and area[3] == 119, "on top of the box, from its left"
    ys, xs = (pixels == rgb(PALETTE[1])).all(2)[:120].nonzero()
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == area


def test_letters_grow_with_the_picture(drawn: Drawn) -> None:
    for scale in (1, 2, 5):
        side = 400 * scale
        draw_boxes(Image.new("RGB", (side, side)), [(side / 4, side / 4, side / 2, side / 2)], [0])
    large, middle, small = (points for _, _, points in drawn.plates)
    assert middle == pytest.approx(2 * small, abs=1.5) and large == pytest.approx(5 * small, abs=3)


@pytest.mark.parametrize(
    "box", [(0, 0, 640, 480), (-50, -50, 90, 60), (600, 0, 640, 10), (600, 470, 700, 600)]
)
def test_plates_stay_inside_the_picture(drawn: Drawn, box: Area) -> None:
    draw_boxes(Image.new("RGB", (640, 480)), [box], [0], class_names=["a long name"], scores=[1])
    ((area, text, _),) = drawn.plates
    assert text == "a long name 1.00"
    assert area[0] >= 0 and area[1] >= 0 and area[2] < 640 and area[3] < 480


def test_plates_do_not_hide_each_other(drawn: Drawn) -> None:
    """Seven people at almost the same place."""
    boxes = [(200 + 3 * k, 150 + 2 * k, 320 + 3 * k, 380 + 2 * k) for k in range(7)]
    scores = [0.3 + 0.1 * k for k in range(7)]
    draw_boxes(Image.new("RGB", (640, 480)), boxes, [0] * 7, class_names=["person"], scores=scores)
    assert len(drawn.plates) == 7
    areas = [area for area, _, _ in drawn.plates]
    assert not any(overlap(a, b) for i, a in enumerate(areas) for b in areas[:i])
    best, text, _ = drawn.plates[0]
    assert text == "person 0.90" and best[0] == boxes[6][0], "the best box has the best place"


@pytest.mark.parametrize("size", [(20, 30), (1, 200), (200, 1), (1, 1), (3000, 40), (50, 4000)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    shown = draw_boxes(
        Image.new("L", size, 200), [(0, 0, *size), (size[0] / 2, 0, size[0], size[1] / 2)], [0, 99],
        class_names=["somewhat long"], scores=[0.5, 0.7],
    )  # fmt: skip
    factor = shown.width // size[0]
    assert shown.size == (factor * size[0], factor * size[1]) and shown.mode == "RGB"
    assert factor == 1 if max(size) >= 320 else max(shown.size) >= 320
    colors = {tuple(color) for color in np.asarray(shown).reshape(-1, 3)}
    assert colors & {rgb(class_color(0)), rgb(class_color(99))}


def test_no_boxes_leave_the_picture_as_it_is() -> None:
    picture = Image.effect_noise((400, 300), 60).convert("RGB")
    shown = draw_boxes(picture, [], [])
    assert shown is not picture and shown.tobytes() == picture.tobytes()


def test_white_letters_can_be_read_on_every_plate() -> None:
    colors = [class_color(label) for label in range(90)]
    assert len(set(colors)) == 90
    for color in colors[len(PALETTE) :]:
        assert 1.05 / (detections._luminance(*(part / 255 for part in rgb(color))) + 0.05) >= 4.4


def test_lengths_that_differ_are_refused() -> None:
    picture = Image.new("RGB", (400, 300))
    with pytest.raises(ValueError, match="labels: expected one for each of 1 boxes.* got 2"):
        draw_boxes(picture, [(0, 0, 9, 9)], [0, 1])
    with pytest.raises(ValueError, match=r"boxes: expected \(x1, y1, x2, y2\), got \[1, 2\]"):
        draw_boxes(picture, [(1, 2)], [0])


def write_video(path: Path, frames: int, *, turned: int = 0) -> Path:
    """96 x 64, frame k of grey 20 k, with a red corner at its top left."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if turned:
            stream.set_display_rotation(turned)
        for k in range(frames):
            pixels = np.full((64, 96, 3), 20 * k, np.uint8)
            pixels[:24, :32] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_animation(path: Path, frames: int) -> Path:
    pictures = [Image.new("RGB", (40, 30), (40 * k, 0, 0)) for k in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def test_frames_of_a_video(tmp_path: Path) -> None:
    frames = Frames([write_video(tmp_path / "clip.mp4", 10)], every=4)
    assert frames.total is None
    found = list(frames)
    assert [frame.name for frame in found] == [f"clip.mp4#{k:06d}" for k in (0, 4, 8)]
    assert [frame.number for frame in found] == [0, 4, 8]
    for frame in found:
        assert frame.picture.size == (96, 64)
        red, grey = (frame.picture.getpixel(at) for at in ((5, 5), (80, 50)))
        assert red == pytest.approx((250, 5, 5), abs=12)
        assert grey == pytest.approx((20 * (frame.number or 0),) * 3, abs=6)
    assert len(list(Frames([tmp_path], limit=3))) == 3


@pytest.mark.parametrize(("turned", "corner"), [(90, (5, 90)), (-90, (58, 5)), (180, (90, 58))])
def test_a_video_of_a_turned_camera_is_upright(
    tmp_path: Path, turned: int, corner: tuple[int, int]
) -> None:
    (frame,) = Frames([write_video(tmp_path / "clip.mp4", 1, turned=turned)])
    assert frame.picture.size == ((96, 64) if turned == 180 else (64, 96))
    assert frame.picture.getpixel(corner) == pytest.approx((250, 5, 5), abs=12)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_frames_of_an_animation(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"moves.{suffix}", 5)
    found = list(Frames([path], every=2))
    assert [frame.number for frame in found] == [0, 2, 4]
    reds = [np.asarray(frame.picture)[15, 20, 0] for frame in found]
    assert reds == pytest.approx([0, 80, 160], abs=3)


def test_files_of_folders_are_in_order_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.png", ".hidden.png", ".git/d.png", "out/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image", "utf-8")
    frames = Frames([tmp_path, tmp_path / "b.png"], leave_out=tmp_path / "out")
    assert [frame.name for frame in frames] == ["a.JPG", "b.png", "sub/c.png", "b.png"]
    assert frames.total == 4
    assert Frames([tmp_path], limit=2).total == 2


def test_what_cannot_be_read_is_named_or_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    for name in ("a.jpg", "c.gif"):
        (tmp_path / name).write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"a\.jpg: not an image file"):
        list(Frames([tmp_path]))
    frames = Frames([tmp_path], on_error="skip")
    assert [frame.name for frame in frames] == ["b.png"]
    assert [Path(reason.partition(":")[0]).name for reason in frames.skipped] == ["a.jpg", "c.gif"]


def test_a_broken_video_is_named(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "clip.mp4", 3).read_bytes()
    for name, content in (("cut.mp4", whole[:900]), ("none.mkv", b"nothing"), ("x.avi", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot be decoded"):
            list(Frames([tmp_path / name]))


def test_a_truncated_animation_is_named(tmp_path: Path) -> None:
    whole = write_animation(tmp_path / "moves.gif", 5).read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) * 2 // 3])
    frames = Frames([tmp_path / "cut.gif"], on_error="skip")
    assert len(list(frames)) < 5


def test_without_its_reader_a_video_says_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    # Nothing to skip a file for: all videos would be left out.
    with pytest.raises(ValueError, match=r"clip\.mp4: .*pip install 'evitlab\[detect\]'"):
        list(Frames([tmp_path / "clip.mp4"], on_error="skip"))


def test_images_do_not_load_the_reader_of_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    load = builtins.__import__

    def watched(name: str, *args: Any, **options: Any) -> Any:
        assert name != "av"
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", watched)
    assert len(list(Frames([tmp_path]))) == 1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"paths": []}, ValueError, "paths: expected at least one"),
        ({"every": 0}, ValueError, "every: expected at least 1, got 0"),
        ({"limit": 0}, ValueError, "limit: expected at least 1, got 0"),
        ({"on_error": "ignore"}, ValueError, "on_error: expected 'raise' or 'skip'"),
        ({"paths": ["nothing"]}, FileNotFoundError, "nothing: expected an image, a video"),
        ({}, ValueError, "expected images or videos in the folder, found none"),
    ],
)
def test_wrong_input_is_named(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Frames(**{"paths": [tmp_path], **options})
