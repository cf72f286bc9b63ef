"""Grey as MATLAB's `rgb2gray` makes it, which DnCNN's training and test images went through."""

import numpy as np
from numpy.typing import NDArray

# Luminance of NTSC's primaries; no 8-bit colour lies near enough to a half to round either way.
WEIGHTS = np.array([0.298936021293775390, 0.587043074451121360, 0.114020904255103250])
PIXELS_AT_ONCE = 2**14


def with_channels(photograph: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """The RGB photograph (H, W, 3) itself, or as grey, (H, W, 1), rounded to 8 bits."""
    if channels == photograph.shape[2]:
        return photograph
    height, width, _ = photograph.shape
    grey = np.empty((height, width, 1), np.uint8)
    # In bands: all at once would take 32 bytes a pixel.
    rows = max(1, PIXELS_AT_ONCE // width)
    for top in range(0, height, rows):
        levels = photograph[top : top + rows] @ WEIGHTS
        levels += 0.5
        grey[top : top + rows, :, 0] = levels
    return grey
