import numpy as np
import pytest
from data_samples import photograph
from shared_data import BENCHMARKS, needs_data

from pipeline import config
from pipeline.corruptions.bicubic import imresize
from pipeline.data import testsets
from pipeline.metrics import luma, psnr, ssim
from pipeline.scoring import as_tensor, mean_scores, score, score_restoration
from pipeline.tasks import TASKS, Bicubic, GaussianNoise, RainStreaks, task_named


def test_equal_images_have_no_finite_psnr():
    clean = as_tensor(photograph(0))

    scores = score(clean, clean, crop_border=0)

    assert scores["psnr_rgb"] is None
    assert scores["ssim_rgb"] == 1
    assert mean_scores([scores, scores])["psnr_rgb"] is None


def test_a_model_that_makes_another_size_is_refused():
    with pytest.raises(ValueError, match="restored to"):
        score_restoration(
            photograph(0), photograph(0), corruption=RainStreaks(), restore=lambda x: x[..., :-1]
        )


@needs_data
@pytest.mark.parametrize(
    ("scale", "rounded_luma", "published"),
    [
        # The literature's protocol with 8-bit images and MATLAB's rounded Y, SSIM beside it.
        (2, True, (33.64, 0.9292)),
        (3, True, (30.39, 0.8678)),
        (4, True, (28.42, 0.8101)),
        # Ours, and IPT's: Y unrounded.
        (4, False, (28.431, None)),
    ],
)
def test_bicubic_upscaling_of_set5_has_the_published_scores(scale, rounded_luma, published):
    test_set = testsets.open_test_set(
        config.TestSetConfig(path=str(BENCHMARKS / "Set5" / "HR")),
        TASKS[f"sr{scale}"],
        seed=0,
        sources={},
    )
    corruption = Bicubic(scale=scale)
    if rounded_luma:
        images = [
            score(
                as_tensor(imresize(pair.corrupted, scale)),
                as_tensor(pair.clean),
                crop_border=scale,
                rounded_luma=True,
            )
            for pair in test_set
        ]
    else:
        images = [
            score_restoration(
                pair.corrupted,
                pair.clean,
                corruption=corruption,
                restore=lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3),
            ).corrupted
            for pair in test_set
        ]

    mean = mean_scores(images)

    psnr, ssim = published
    assert mean["psnr_y"] == pytest.approx(psnr, abs=0.012)
    assert ssim is None or mean["ssim_y"] == pytest.approx(ssim, abs=2e-4)


@needs_data
def test_rain100l_input_has_its_known_scores():
    test_set = testsets.open_test_set(
        config.TestSetConfig(
            path=str(BENCHMARKS / "Rain100L" / "clean"),
            corrupted=str(BENCHMARKS / "Rain100L" / "rainy"),
            tasks=("derain",),
        ),
        TASKS["derain"],
        seed=0,
        sources={},
    )

    rounded, structure, unrounded = [], [], []
    for pair in test_set:
        images = as_tensor(pair.corrupted), as_tensor(pair.clean)
        rounded.append(psnr(*(luma(each, rounded=True) for each in images)).item())
        structure.append(ssim(*(luma(each, rounded=True) for each in images)).item())
        unrounded.append(psnr(*(luma(each) for each in images)).item())

    assert len(rounded) == 20
    assert np.mean(rounded) == pytest.approx(26.175, abs=5e-4)
    assert np.mean(structure) == pytest.approx(0.8136, abs=5e-5)
    # What an evaluation of ours says, on Y as it is.
    assert np.mean(unrounded) == pytest.approx(26.178, abs=5e-4)


@needs_data
def test_noise_on_cbsd68_has_the_known_input_scores():
    """Corruption study: 18.60 dB on RGB at σ 30 unclipped; Y reads 4.8 dB more."""
    test_set = testsets.open_test_set(
        config.TestSetConfig(path=str(BENCHMARKS / "CBSD68")),
        task_named("denoise30", clip_noise=False),
        seed=0,
        sources={},
    )
    images = []
    for number, pair in enumerate(test_set):
        if number == 6:
            break
        images.append(
            score_restoration(
                pair.corrupted,
                pair.clean,
                corruption=GaussianNoise(sigma_255=30, clip=False),
                restore=lambda x: x,
            ).corrupted
        )

    mean = mean_scores(images)
    assert mean["psnr_rgb"] == pytest.approx(18.59, abs=0.02)
    assert mean["psnr_y"] == pytest.approx(23.40, abs=0.03)
