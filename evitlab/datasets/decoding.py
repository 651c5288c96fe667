"""Encoded image bytes -> RGB uint8 arrays, whatever the file's colour mode, depth or orientation.

Shape legend: N images, H x W pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

# Of Pillow's many formats those of images as they are photographed and published. Others, whose
# bytes may come under any name, have done harm: for EPS Pillow starts Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Above this a file is refused before a pixel is decoded: 0.27 GB as RGB.
MAX_PIXELS = 89_478_485
# The luminance table of the JPEG standard at quality 50 (Annex K); encoders scale it by quality.
_JPEG_TABLE_SUM = 3688
_PROGRESS_DELAY_S = 2.0
# Where Pillow keeps metadata that may hold an orientation; TIFF it turns upright by itself.
_ORIENTATION_KEYS = frozenset({"exif", "xmp", "Raw profile type exif"})
_ON_THEIR_SIDE = (5, 6, 7, 8)  # orientations that swap height and width
_CHUNK = 64

OnError = Literal["raise", "skip"]


class SizesDiffer(ValueError):
    """Images of several sizes, where no size to bring them to was given."""


def decode_image(data: bytes, *, where: str = "image") -> Image.Image:
    """Decode one image file to an RGB picture, upright.

    Greyscale, palette, CMYK, YCbCr and bilevel pictures are converted; 16-bit grey is scaled to
    8 bits (65535 becomes 255); transparency is laid over white; the EXIF orientation is applied.
    Of an animation the first frame is taken.

    Args:
        data: the whole file.
        where: what to call it in an error, e.g. its path.

    Raises:
        ValueError: the bytes are no image, are truncated or corrupt, declare more than
            `MAX_PIXELS` pixels, or hold pixels without a defined range (32-bit, floating point).
    """
    try:
        # Naming the format spares Pillow from asking every plugin, a third of the time at 32 px.
        formats = ("JPEG",) if data.startswith(b"\xff\xd8") else FORMATS
        image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, at most {MAX_PIXELS:,} are accepted")
        image.load()
        if image.info.keys() & _ORIENTATION_KEYS:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{where}: not an image file ({len(data):,} bytes)") from error
    except MemoryError:
        raise
    # Pillow's plugins raise OSError, SyntaxError, struct.error, IndexError, ... on corrupt files,
    # and DecompressionBombWarning where warnings are errors: each means "cannot be read".
    except Exception as error:
        raise ValueError(f"{where}: cannot be decoded ({error})") from error


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of the upright image, by the file's header; None: not readable."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            height, width = image.height, image.width
            # Asked of other files, Pillow would decode a PNG to look for it.
            if image.info.keys() & _ORIENTATION_KEYS:
                if image.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE:
                    return width, height
            return height, width
    except Exception:  # as in `decode_image`: plugins raise what they like on corrupt files
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("integer pixels outside 0..65535")
        scaled = np.empty(levels.shape, np.uint8)
        for row, line in enumerate(levels.astype(np.uint16)):  # row by row: little memory
            scaled[row] = (line.astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(scaled).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; convert to 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def fit_image(
    image: Image.Image, img_size: tuple[int, int] | None, *, crop_ratio: float = 1.0
) -> np.ndarray:
    """Resize the short side (bicubic, antialiased), then crop the centre to `img_size`.

    Args:
        image: an RGB picture.
        img_size: (height, width) of the result; None leaves the picture as it is.
        crop_ratio: side of the crop over side of the resized picture; the paper evaluates at
            224 / 256.

    Returns:
        uint8 [H, W, 3].
    """
    if img_size is not None and (image.height, image.width) != img_size:
        height, width = img_size
        # As torchvision rounds: the tighter side exactly, the other one down.
        if height * image.width >= width * image.height:
            resized_h = round(height / crop_ratio)
            resized_w = max(width, resized_h * image.width // image.height)
        else:
            resized_w = round(width / crop_ratio)
            resized_h = max(height, resized_w * image.height // image.width)
        top, left = round((resized_h - height) / 2), round((resized_w - width) / 2)
        if resized_h * resized_w > MAX_PIXELS:  # of a long strip only the centre is resized
            across, down = image.width / resized_w, image.height / resized_h
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
        image = image.resize((resized_w, resized_h), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image)


def decode_all(
    count: int,
    read: Callable[[int], tuple[bytes, str]],
    *,
    img_size: tuple[int, int] | None = None,
    on_error: OnError = "raise",
    title: str = "images",
) -> tuple[np.ndarray, np.ndarray]:
    """Decode `count` images in threads (Pillow releases the GIL while it decodes).

    Args:
        count: how many images there are.
        read: index -> (file bytes, name for errors).
        img_size: (height, width) for `fit_image`, or None: the images must have one size.
        on_error: "raise" at the first bad image, or "skip" and leave it out.
        title: label of the progress bar, which appears after two seconds.

    Returns:
        uint8 [N, 3, H, W] and int64 [N], the indices of the images that are in it.

    Raises:
        ValueError: an image cannot be decoded.
        SizesDiffer: the sizes differ and `img_size` is None.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")

    def decode_chunk(start: int) -> tuple[np.ndarray | None, list[int]]:
        pictures: list[np.ndarray] = []
        kept: list[int] = []
        for index in range(start, min(start + _CHUNK, count)):
            try:
                data, where = read(index)
                picture = fit_image(decode_image(data, where=where), img_size)
            except (ValueError, OSError):
                if on_error == "raise":
                    raise
                continue
            if pictures and picture.shape != pictures[0].shape:
                raise _sizes_differ(pictures[0].shape, picture.shape, where)
            pictures.append(picture)
            kept.append(index)
        if not pictures:
            return None, kept
        return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2)), kept

    images: np.ndarray | None = None
    done: list[int] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=count, desc=title, unit="img", delay=_PROGRESS_DELAY_S, leave=False) as bar,
    ):
        # Results arrive in order, so the outcome is the same whatever the number of threads.
        for chunk, kept in pool.map(decode_chunk, range(0, count, _CHUNK)):
            if chunk is not None:
                if images is None:
                    images = np.empty((count, *chunk.shape[1:]), np.uint8)
                if chunk.shape[1:] != images.shape[1:]:
                    where = read(kept[0])[1]
                    raise _sizes_differ(images.shape[2:], chunk.shape[2:], where)
                images[len(done) : len(done) + len(kept)] = chunk
                done += kept
            bar.update(min(_CHUNK, count - bar.n))
    if images is None:
        images = np.empty((0, 3, *(img_size or (0, 0))), np.uint8)
    return images[: len(done)], np.array(done, np.int64)


def _sizes_differ(first: tuple[int, ...], second: tuple[int, ...], where: str) -> SizesDiffer:
    return SizesDiffer(
        f"img_size: the images differ in size ({first[0]}x{first[1]}, then "
        f"{second[0]}x{second[1]} in {where}); give the size to bring them to"
    )


def jpeg_quality(data: bytes) -> int | None:
    """Quality setting (1..100) that a JPEG was written with; None if it is no readable JPEG.

    Estimated from the luminance quantisation table, so exact only for encoders that scale the
    standard's table, as libjpeg does.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            tables: dict[int, Sequence[int]] = getattr(image, "quantization", {})
    except (OSError, SyntaxError):
        return None
    if not tables:
        return None
    percent = 100 * sum(tables[0]) / _JPEG_TABLE_SUM
    return max(1, min(100, round(100 - percent / 2 if percent <= 100 else 5000 / percent)))
