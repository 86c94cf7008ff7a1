"""How like two pictures are: PSNR and SSIM, as scikit-image computes them, without needing it."""

import numpy as np
from scipy.ndimage import uniform_filter

SSIM_WINDOW = 7
PSNR_CEILING = 100.0  # what an identical picture counts as; its true value is infinite


def psnr(picture: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures of one shape."""
    error = float(np.mean(np.square(picture.astype(np.float64) - other.astype(np.float64))))
    return PSNR_CEILING if error == 0 else float(min(PSNR_CEILING, 10 * np.log10(255**2 / error)))


def ssim(picture: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two uint8 pictures [height, width, channels], up to 1 (Wang et al. 2004).

    Uniform 7x7 window, sample covariance, K1 = .01, K2 = .03, borders cut: scikit-image's `structural_similarity`.
    """
    x, y = picture.astype(np.float64), other.astype(np.float64)
    size = (SSIM_WINDOW, SSIM_WINDOW, 1)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mean_x, mean_y = uniform_filter(x, size), uniform_filter(y, size)
    variance_x = unbiased * (uniform_filter(x * x, size) - mean_x * mean_x)
    variance_y = unbiased * (uniform_filter(y * y, size) - mean_y * mean_y)
    covariance = unbiased * (uniform_filter(x * y, size) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    score /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    edge = SSIM_WINDOW // 2
    return float(score[edge:-edge, edge:-edge].mean())
