"""From mask files to uint8 label maps of one size; what `pixels.py` is for images.

The value of a pixel is its class number, and no colour has a meaning. A palette PNG holds the
numbers as indices; a grey one of 1, 2, 4 or 8 bits as values, and one of 16 bits where all of them
are below 256. A mask is turned upright by its own EXIF orientation, as images are by theirs, and
has the size of its image. Another size is reached by nearest neighbour: no class is invented.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from kdpipe.stages.pixels import BadImage, Form, content, measure, opened

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_DEPTH = 24  # offset of the bit depth in a PNG: signature, chunk head, width and height before it


def decode_mask(mask: Path, image: Path, form: Form) -> NDArray[np.uint8]:
    """Read the mask of `image`: class numbers uint8 (H, W), of the height and width of `form`.

    Raises BadImage, among others for a mask that has not the size of its image.
    """
    data = content(mask)

    def read(picture: Image.Image) -> NDArray[np.uint8]:
        picture.load()
        return _class_numbers(ImageOps.exif_transpose(picture), data[_DEPTH])

    expected = "a PNG file; only that keeps every label as it is"
    numbers = opened(BytesIO(data), read, formats=("PNG",), expected=expected)
    _require_size(numbers.shape, image)
    fitted: NDArray[np.uint8] = fit_maps(numbers[None], form)[0]
    return fitted


def fit_maps(maps: NDArray[np.uint8], form: Form) -> NDArray[np.uint8]:
    """Bring label maps (n, h, w) to the height and width of `form`, by nearest neighbour."""
    if maps.shape[1:] == (form.height, form.width):
        return maps
    size = form.width, form.height
    return np.stack(
        [np.asarray(Image.fromarray(m).resize(size, Image.Resampling.NEAREST)) for m in maps]
    )


def _class_numbers(picture: Image.Image, depth: int) -> NDArray[np.uint8]:
    values = np.asarray(picture)
    if picture.mode in ("P", "1"):
        return values.astype(np.uint8)
    if picture.mode == "L":
        # Grey of 2 or 4 bits has been spread over 0..255, as the format wants of pictures.
        return values // np.uint8(255 // (2**depth - 1))
    if picture.mode.startswith("I"):
        if values.max() > 255:
            raise ValueError(f"holds the label {values.max()}; labels are at most 255")
        return values.astype(np.uint8)
    raise ValueError(
        f"is a picture of mode {picture.mode}, not of class numbers;"
        " save the number of each pixel's class as a PNG of mode P or L"
    )


def _require_size(size: tuple[int, ...], image: Path) -> None:
    try:
        height, width, _ = measure(image)
    except BadImage:
        return  # named with the images
    if size != (height, width):
        raise BadImage(f"is {size[0]}x{size[1]}, its image {height}x{width} (height x width)")
