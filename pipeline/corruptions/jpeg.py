"""JPEG artefacts: libjpeg's, so that grey images equal what MATLAB's `imwrite` makes of them."""

# H W height and width, C channels; images are (H, W, C) uint8, grey or RGB.

from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

SQUARE = 16  # pixels that are coded together, as colour has half the resolution


def compress_region(
    image: NDArray[np.uint8], quality: int, *, rows: tuple[int, int], columns: tuple[int, int]
) -> NDArray[np.uint8]:
    """What `rows`, `columns` (start, stop) of the whole image look like once it is compressed.

    Only the squares of the region are compressed, in the grid of the whole image: every square is
    coded by itself, so the pixels are the same. Decoding mixes the colours of neighbouring pixels,
    whose squares count too. `quality` is libjpeg's, 1..100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality {quality} is not in 1..100")
    top, left = (max(0, start - 1) // SQUARE * SQUARE for start, _ in (rows, columns))
    bottom, right = ((stop // SQUARE + 1) * SQUARE for _, stop in (rows, columns))
    squares = image[top:bottom, left:right]
    grey = squares.shape[2] == 1
    content = BytesIO()
    # By Pillow: simplejpeg encodes with the faster of libjpeg's transforms, whose results differ.
    # As Image.fromarray does, in four fifths of the time.
    picture = Image.frombytes("L" if grey else "RGB", squares.shape[1::-1], squares.tobytes())
    picture.save(content, "JPEG", quality=quality, subsampling="4:2:0")
    # Both decode to the same pixels; simplejpeg in a quarter of the time.
    decoded = simplejpeg.decode_jpeg(content.getvalue(), colorspace="GRAY" if grey else "RGB")
    return decoded[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
