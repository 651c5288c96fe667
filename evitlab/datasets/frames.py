"""Pictures to detect on: image files, folders of them, and the frames of videos and animations."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from evitlab.datasets.decoding import FORMATS, MAX_PIXELS, OnError, decode_image
from evitlab.datasets.folders import IMAGE_SUFFIXES, read_image_file, walk

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_ANIMATED = ("GIF", "WEBP", "PNG")  # other formats have pages, or a preview, instead


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture, upright and RGB.

    Attributes:
        file: relative to the folder that was named, else the file's name.
        picture: RGB.
        number: of a video's frame, counted from 0; None of an image.
    """

    file: str
    picture: Image.Image
    number: int | None = None

    @property
    def name(self) -> str:
        """The file, of a video with the frame's number: "clip.mp4#000025"."""
        return self.file if self.number is None else f"{self.file}#{self.number:06d}"


class Frames:
    """The pictures of files, folders and videos, read one at a time.

    Attributes:
        files: what is read, as (file, its name).
        skipped: after a pass: what could not be read, and why; always empty with on_error="raise".
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        every: int = 1,
        limit: int | None = None,
        on_error: OnError = "raise",
        leave_out: str | os.PathLike[str] | None = None,
    ) -> None:
        """List the files; none is opened.

        Args:
            paths: files, or folders: all images and videos in them and below, by name. Hidden
                ones are left out.
            every: of a video or an animation, frames 0, `every`, 2 `every`, …
            limit: pictures at most.
            on_error: "raise" at the first file that cannot be read, or "skip" it.
            leave_out: a folder below which nothing is taken, such as where results are written.

        Raises:
            ValueError: a number below one, or a folder without images and videos.
            FileNotFoundError: no such file or folder.
        """
        for name, number in (("every", every), ("limit", limit)):
            if number is not None and number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
        if not paths:
            raise ValueError("paths: expected at least one file or folder, got none")
        hidden = Path(leave_out).resolve() if leave_out is not None else None
        self.files = [entry for path in paths for entry in _listed(Path(path), hidden)]
        self.every, self.limit, self.on_error = every, limit, on_error
        self.skipped: list[str] = []

    @property
    def total(self) -> int | None:
        """How many pictures there are; None where that takes reading them: videos, animations."""
        if any(may_move(file) for file, _ in self.files):
            return None
        return min(len(self.files), self.limit or len(self.files))

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        return islice(self._all(), self.limit)

    def _all(self) -> Iterator[Frame]:
        for file, name in self.files:
            try:
                yield from _frames(file, name, self.every)
            except (ValueError, OSError) as error:
                if self.on_error == "raise" or isinstance(error, _NoReader):
                    raise
                self.skipped.append(str(error))


class _NoReader(ValueError):
    """Videos cannot be read at all, which is nothing that a file is skipped for."""


def _listed(path: Path, leave_out: Path | None) -> list[tuple[Path, str]]:
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected an image, a video or a folder, found nothing")
    found: list[tuple[Path, str]] = []
    for folder, below, names in walk(path):
        here = Path(folder)
        below[:] = sorted(
            name for name in below
            if not name.startswith((".", "__MACOSX")) and (here / name).resolve() != leave_out
        )  # fmt: skip
        found += [
            (here / name, (here / name).relative_to(path).as_posix())
            for name in sorted(names)
            if name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
            and not name.startswith(".")
        ]
    if not found:
        raise ValueError(
            f"{path}: expected images or videos in the folder, found none; accepted are "
            f"{', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}"
        )
    return found


def _is_video(file: Path) -> bool:
    return file.name.lower().endswith(VIDEO_SUFFIXES)


def may_move(file: Path) -> bool:
    """Whether a file has frames: a video by its name, an animation by its header."""
    return _is_video(file) or file.suffix.lower() in (".gif", ".webp", ".png") and _moves(file)


def _moves(file: Path) -> bool:
    """By the header."""
    if not file.is_file():  # a pipe would be waited for
        return False
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
    except Exception:  # plugins raise what they like on corrupt files: said where it is decoded
        return False


def _frames(file: Path, name: str, every: int) -> Iterator[Frame]:
    if _is_video(file):
        frames = _video(file, every)
    elif may_move(file):
        frames = _animation(file, every)
    else:
        yield Frame(name, decode_image(read_image_file(file), where=str(file)))
        return
    for number, picture in frames:
        yield Frame(name, picture, number)


def _animation(file: Path, every: int) -> Iterator[tuple[int, Image.Image]]:
    try:
        with Image.open(io.BytesIO(read_image_file(file)), formats=FORMATS) as image:
            _check_pixels(file, *image.size)
            for number in range(0, getattr(image, "n_frames", 1), every):
                image.seek(number)
                layer = image.convert("RGBA")
                white = Image.new("RGBA", layer.size, "white")
                yield number, Image.alpha_composite(white, layer).convert("RGB")
    # As in `decode_image`: what Pillow's plugins raise on corrupt files.
    except (OSError, SyntaxError, EOFError, IndexError) as error:
        raise ValueError(f"{file}: cannot be decoded ({error})") from error


def _video(file: Path, every: int) -> Iterator[tuple[int, Image.Image]]:
    try:
        import av
    except ImportError as error:
        raise _NoReader(
            f"{file}: expected PyAV to be installed, which reads videos: "
            "pip install 'evitlab[detect]'"
        ) from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"{file}: expected a video, got a file without pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"  # decoding in threads, some times as fast
            for number, frame in enumerate(container.decode(stream)):
                if number % every == 0:
                    _check_pixels(file, frame.width, frame.height)
                    picture = frame.to_image()
                    # A telephone held upright writes lying frames and by how much to turn them.
                    turn = round(frame.rotation) % 360
                    yield number, picture.rotate(turn, expand=True) if turn else picture
    except av.FFmpegError as error:
        raise ValueError(f"{file}: cannot be decoded ({error.strerror})") from error


def _check_pixels(file: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{file}: {width}x{height} pixels, at most {MAX_PIXELS:,} are accepted")
