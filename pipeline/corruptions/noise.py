"""Additive white Gaussian noise, under the two conventions of the field."""

import numpy as np
from numpy.typing import NDArray


def add_gaussian_noise(
    clean: NDArray[np.uint8],
    sigma_255: float,
    *,
    clip: bool,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """clean + N(0, sigma_255²), independent per pixel and channel, divided by 255.

    `clean` is of any shape, 0..255. The noisy image is never rounded; clipped to [0, 1] as IPT
    does, or left as it is, as DnCNN and its successors do.
    """
    if clean.dtype != np.uint8:
        raise ValueError(f"noise is added to uint8 images, 0..255; got {clean.dtype}")
    if not 0 <= sigma_255 < np.inf:
        raise ValueError(f"sigma_255 {sigma_255} is not a number of at least 0")
    noisy = rng.standard_normal(clean.shape, dtype=np.float32)
    noisy *= np.float32(sigma_255)
    noisy += clean
    noisy /= np.float32(255)
    if clip:
        np.clip(noisy, 0, 1, out=noisy)
    return noisy
