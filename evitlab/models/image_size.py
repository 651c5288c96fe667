"""The size that a detector brings an image to; apart from it, as reading images needs no model."""

def resized_size(height: int, width: int, img_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after bringing the short side to `img_size[0]`, or the long one to
    `img_size[1]` where it would be longer than that; the shape is kept."""
    short, long = img_size
    scale = min(short / min(height, width), long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
