"""PSNR, SSIM and luma as the restoration literature computes them, in float64."""

# N batch, C channels, H W height and width. Images are in [0, 1].

import torch
from torch import Tensor

# ITU-R BT.601, studio range: white gives 235, black 16.
LUMA_WEIGHTS = (65.481, 128.553, 24.966)
LUMA_BLACK = 16.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def quantise(image: Tensor) -> Tensor:
    """Clip to [0, 1] and round half up to the steps of 1/255 that an 8-bit file holds."""
    return torch.floor(image.clamp(0, 1) * 255 + 0.5) / 255


def luma(image: Tensor, *, rounded: bool = False) -> Tensor:
    """Y of RGB as MATLAB's `rgb2ycbcr`: (N, 3, H, W) to (N, 1, H, W), float64 in [16/255, 235/255].

    `rounded` gives the 8-bit Y of MATLAB's uint8 images, which deraining papers score; the
    super-resolution literature leaves Y as it is.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"luma takes RGB, (N, 3, H, W); got {tuple(image.shape)}")
    weights = torch.tensor(LUMA_WEIGHTS, dtype=torch.float64, device=image.device)
    luma_255 = torch.einsum("nchw,c->nhw", image.double(), weights)[:, None] + LUMA_BLACK
    if rounded:
        luma_255 = torch.floor(luma_255 + 0.5)
    return luma_255 / 255


def drop_border(image: Tensor, crop_border: int) -> Tensor:
    """`image` without `crop_border` pixels on each side."""
    height, width = image.shape[-2:]
    if not 0 <= 2 * crop_border < min(height, width):
        raise ValueError(f"a border of {crop_border} leaves nothing of {height}×{width} pixels")
    return image[..., crop_border : height - crop_border, crop_border : width - crop_border]


def psnr(restored: Tensor, clean: Tensor, crop_border: int = 0) -> Tensor:
    """Peak signal-to-noise ratio per image, (N,), in dB; infinite for identical images.

    Both are (N, C, H, W) in [0, 1]. `crop_border` pixels are dropped on each side, as the
    super-resolution literature does with the scale factor.
    """
    restored, clean = _comparable(restored, clean, crop_border)
    return -10 * torch.log10((restored - clean).square().mean(dim=(1, 2, 3)))


def ssim(restored: Tensor, clean: Tensor, crop_border: int = 0) -> Tensor:
    """Structural similarity per image, (N,), the mean over channels (Wang et al., 2004).

    Both are (N, C, H, W) in [0, 1]. The window is Gaussian, 11×11 of σ 1.5, and only where it lies
    inside the image, as in the authors' MATLAB code, without their later downsampling.
    """
    restored, clean = _comparable(restored, clean, crop_border)
    height, width = clean.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW}×{SSIM_WINDOW} pixels; got {height}×{width}")
    mean_r, mean_c = _window_mean(restored), _window_mean(clean)
    variance_r = _window_mean(restored.square()) - mean_r.square()
    variance_c = _window_mean(clean.square()) - mean_c.square()
    covariance = _window_mean(restored * clean) - mean_r * mean_c
    luminance = (2 * mean_r * mean_c + SSIM_K1**2) / (
        mean_r.square() + mean_c.square() + SSIM_K1**2
    )
    structure = (2 * covariance + SSIM_K2**2) / (variance_r + variance_c + SSIM_K2**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _comparable(restored: Tensor, clean: Tensor, crop_border: int) -> tuple[Tensor, Tensor]:
    if restored.shape != clean.shape or clean.ndim != 4:
        raise ValueError(
            "images to compare are (N, C, H, W) of one shape; got "
            f"{tuple(restored.shape)} and {tuple(clean.shape)}"
        )
    if not (restored.is_floating_point() and clean.is_floating_point()):
        raise ValueError(
            f"images to compare are floats in [0, 1]; got {restored.dtype} and {clean.dtype}"
        )
    return drop_border(restored.double(), crop_border), drop_border(clean.double(), crop_border)


def _window_mean(image: Tensor) -> Tensor:
    """Gaussian mean around every pixel with a whole window: (N, C, H - 10, W - 10)."""
    distance = torch.arange(SSIM_WINDOW, device=image.device) - SSIM_WINDOW // 2
    window = torch.exp(-(distance.double() ** 2) / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    # Separable: two passes of 11 shifted sums, which take a fifth of the time of a convolution.
    flat = _weighted_sum(image, window.tolist(), dim=-2)
    return _weighted_sum(flat, window.tolist(), dim=-1)


def _weighted_sum(image: Tensor, weights: list[float], dim: int) -> Tensor:
    """The valid part of a correlation along one dimension."""
    length = image.shape[dim] - len(weights) + 1
    total = image.narrow(dim, 0, length) * weights[0]
    for start, weight in enumerate(weights[1:], start=1):
        total.add_(image.narrow(dim, start, length), alpha=weight)
    return total
