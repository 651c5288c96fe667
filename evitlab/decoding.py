"""Encoded image bytes -> RGB uint8 arrays, whatever the file's colour mode, depth or orientation.

Shape legend: N images, H x W pixels. Arrays leave here as [3, H, W].
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

# Above this a file is refused before a pixel is decoded: 0.27 GB as RGB.
MAX_PIXELS = 89_478_485
# The luminance table of the JPEG standard at quality 50 (Annex K); encoders scale it by quality.
_JPEG_TABLE_SUM = 3688
_PROGRESS_DELAY_S = 2.0

OnError = Literal["raise", "skip"]


def decode_image(data: bytes, *, where: str = "image") -> Image.Image:
    """Decode one image file to an RGB picture, upright.

    Greyscale, palette, CMYK, YCbCr and bilevel pictures are converted; 16-bit grey is scaled to
    8 bits (65535 becomes 255); transparency is laid over white; the EXIF orientation is applied.

    Args:
        data: the whole file.
        where: what to call it in an error, e.g. its path.

    Raises:
        ValueError: the bytes are no image, are truncated or corrupt, declare more than
            `MAX_PIXELS` pixels, or hold floating-point pixels (which have no defined range).
    """
    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, at most {MAX_PIXELS:,} are accepted")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"{where}: not an image file ({len(data)} bytes)") from error
    except MemoryError:
        raise
    # Pillow's plugins raise OSError, SyntaxError, struct.error, IndexError, ... on corrupt files,
    # and DecompressionBombWarning where warnings are errors: each means "cannot be read".
    except Exception as error:
        raise ValueError(f"{where}: cannot be decoded ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("integer pixels outside 0..65535")
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
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
        uint8 [3, H, W].
    """
    if img_size is not None and (image.height, image.width) != img_size:
        height, width = img_size
        scale = max(height / image.height, width / image.width) / crop_ratio
        resized_h = max(height, round(image.height * scale))
        resized_w = max(width, round(image.width * scale))
        image = image.resize((resized_w, resized_h), Image.Resampling.BICUBIC)
        top, left = (resized_h - height) // 2, (resized_w - width) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode_all(
    count: int,
    read: Callable[[int], tuple[bytes, str]],
    *,
    img_size: tuple[int, int] | None,
    crop_ratio: float = 1.0,
    on_error: OnError = "raise",
    title: str = "images",
) -> tuple[np.ndarray, list[int]]:
    """Decode `count` images in threads (Pillow releases the GIL while it decodes).

    Args:
        count: how many images there are.
        read: index -> (file bytes, name for errors).
        img_size: (height, width), or None: the size of the first image, which all must then have.
        crop_ratio: see `fit_image`.
        on_error: "raise" at the first bad image, or "skip" and leave it out.
        title: label of the progress bar, which appears after two seconds.

    Returns:
        uint8 [N, 3, H, W] and the indices that are in it.

    Raises:
        ValueError: an image cannot be decoded, or the sizes differ and `img_size` is None.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
    images: np.ndarray | None = None
    kept: list[int] = []
    chunk = 256

    def decode_chunk(start: int) -> list[tuple[np.ndarray, str] | ValueError]:
        results: list[tuple[np.ndarray, str] | ValueError] = []
        for index in range(start, min(start + chunk, count)):
            data, where = read(index)
            try:
                picture = decode_image(data, where=where)
                results.append((fit_image(picture, img_size, crop_ratio=crop_ratio), where))
            except ValueError as error:
                if on_error == "raise":
                    raise
                results.append(error)
        return results

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=count, desc=title, unit="img", delay=_PROGRESS_DELAY_S, leave=False) as bar,
    ):
        # Results arrive in order, so the outcome is the same whatever the number of threads.
        starts = range(0, count, chunk)
        for start, results in zip(starts, pool.map(decode_chunk, starts), strict=True):
            for index, result in enumerate(results, start):
                if isinstance(result, ValueError):
                    continue
                pixels, where = result
                if images is None:
                    images = np.empty((count, *pixels.shape), np.uint8)
                if pixels.shape != images.shape[1:]:
                    expected, got = images.shape[2:], pixels.shape[1:]
                    raise ValueError(
                        f"img_size: the images differ in size ({expected[0]}x{expected[1]}, then "
                        f"{got[0]}x{got[1]} in {where}); give the size to resize them to"
                    )
                images[len(kept)] = pixels
                kept.append(index)
            bar.update(len(results))
    if images is None:
        return np.empty((0, 3, *(img_size or (0, 0))), np.uint8), kept
    return images[: len(kept)], kept


def jpeg_quality(data: bytes) -> int | None:
    """Quality setting (1..100) that a JPEG was written with; None for another format.

    Estimated from the luminance quantisation table, so exact only for encoders that scale the
    standard's table, as libjpeg does.
    """
    with Image.open(io.BytesIO(data)) as image:
        tables: dict[int, Sequence[int]] | None = getattr(image, "quantization", None)
    if not tables:
        return None
    percent = 100 * sum(tables[0]) / _JPEG_TABLE_SUM
    return max(1, min(100, round(100 - percent / 2 if percent <= 100 else 5000 / percent)))
