"""PSNR and SSIM against scikit-image: live where it is installed, else against values it gave."""

import numpy as np
import pytest

from tony.evals.judges.likeness import PSNR_CEILING, psnr, ssim

GOLDEN_PSNR, GOLDEN_SSIM = 26.840806768, 0.770813502


def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:32, :32]
    base = np.stack([8 * x, 8 * y, 4 * (x + y)], axis=-1)
    noisy = np.clip(base + rng.integers(-20, 21, base.shape), 0, 255)
    return base.astype(np.uint8), noisy.astype(np.uint8)


def test_against_values_from_scikit_image():
    one, other = pictures()
    assert psnr(one, other) == pytest.approx(GOLDEN_PSNR, abs=1e-6)
    assert ssim(one, other) == pytest.approx(GOLDEN_SSIM, abs=1e-6)


def test_against_scikit_image_itself():
    metrics = pytest.importorskip("skimage.metrics")
    one, other = pictures()
    assert psnr(one, other) == pytest.approx(metrics.peak_signal_noise_ratio(one, other))
    assert ssim(one, other) == pytest.approx(metrics.structural_similarity(one, other, channel_axis=-1))


def test_a_picture_is_most_like_itself():
    one, other = pictures()
    assert psnr(one, one) == PSNR_CEILING > psnr(one, other)
    assert ssim(one, one) > 0.999 > ssim(one, other) > ssim(one, 255 - one)
