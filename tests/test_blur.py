import numpy as np
import pytest
from data_samples import photograph
from scipy.ndimage import correlate

from pipeline.corruptions.blur import (
    AT_ONCE,
    UNIT,
    Weights,
    blur_both_ways,
    blur_once,
    gaussian_kernel,
    motion_kernel,
    motion_weights,
)

ROUNDED = 2**-19  # weights are multiples of 2**-20


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The whole image by a kernel that is a column or a square."""
    height, width = image.shape[:2]
    return blur_region(image, kernel, rows=(0, height), columns=(0, width))


def blur_region(image: np.ndarray, kernel: np.ndarray, **region: tuple[int, int]) -> np.ndarray:
    if kernel.ndim == 1:
        return blur_both_ways(image, kernel, **region)
    return blur_once(image, Weights.of(kernel), **region)


def one_weight_after_the_other(image: np.ndarray, *kernels: np.ndarray) -> np.ndarray:
    """The whole image convolved with each kernel in turn, in the plainest way, in whole numbers."""
    sums, unit = image.astype(object), 1
    for kernel in kernels:
        down, right = (side // 2 for side in kernel.shape)
        padded = np.pad(sums, ((down, down), (right, right), (0, 0)), mode="symmetric")
        sums = sum(
            int(weight) * padded[row : row + image.shape[0], column : column + image.shape[1]]
            for (row, column), weight in np.ndenumerate(kernel)
            if weight
        )
        unit *= UNIT
    return ((2 * sums + unit) // (2 * unit)).astype(np.uint8)


def test_motion_of_3_pixels_at_45_degrees_is_matlabs():
    """As MATLAB prints fspecial('motion', 3, 45): mathworks.com, answers 307822."""
    printed = [[0, 0.0754, 0.1883], [0.0754, 0.3215, 0.0754], [0.1883, 0.0754, 0]]

    np.testing.assert_allclose(motion_kernel(3, 45) / UNIT, printed, atol=5e-5)


@pytest.mark.parametrize(("angle", "axis"), [(0, 0), (90, 1), (180, 0)])
def test_motion_along_an_axis_is_the_mean_of_its_pixels(angle, axis):
    kernel = motion_kernel(9, angle) / UNIT

    middle = kernel.take(4, axis=axis)
    assert kernel.shape == (9, 9)
    np.testing.assert_allclose(middle, np.full(9, 1 / 9), atol=9 * ROUNDED)
    assert middle.sum() == kernel.sum() == 1


def test_angles_are_counterclockwise():
    upwards, downwards = motion_kernel(15, 30), motion_kernel(15, 150)

    rows, columns = np.mgrid[-7:8, -7:8]
    assert (upwards * rows * columns).sum() < -1  # to the right is up
    np.testing.assert_array_equal(downwards, upwards[:, ::-1])


@pytest.mark.parametrize("length", [1, 5.0, 12.3, 25])
@pytest.mark.parametrize("angle", [0, 17.5, 45, 90, 179])
def test_motion_kernels_are_as_long_as_asked_and_point_where_asked(length, angle):
    kernel = motion_kernel(length, angle) / UNIT

    radius = len(kernel) // 2
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    turn = np.radians(angle)
    along = columns * np.cos(turn) - rows * np.sin(turn)
    across = columns * np.sin(turn) + rows * np.cos(turn)
    assert kernel.sum() == 1
    np.testing.assert_array_equal(kernel, kernel[::-1, ::-1])
    # The variance of a uniform segment of L - 1 pixels, widened by antialiasing.
    variance = (kernel * along**2).sum()
    assert (length - 1) ** 2 / 12 - 0.5 <= variance <= (length + 1) ** 2 / 12 + 0.2
    assert (kernel * across**2).sum() < 0.25


@pytest.mark.parametrize("sigma", [0.2, 1.0, 2.0, 3.0])
def test_gaussian_kernel_is_the_sampled_gaussian(sigma):
    kernel = gaussian_kernel(sigma) / UNIT

    distances = np.arange(-10, 11)
    expected = np.exp(-(distances**2) / (2 * sigma**2))
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=4 * ROUNDED)
    assert kernel.sum() == 1
    if sigma >= 1:
        assert (kernel * distances**2).sum() == pytest.approx(sigma**2, rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_equals_scipys_correlation_with_mirrored_borders(channels):
    image = photograph(0, height=137, width=141)[:, :, :channels]
    assert image.size > AT_ONCE
    column, motion = gaussian_kernel(1.7), motion_kernel(14.5, 63)

    for kernel, square in (
        (column, np.outer(column / UNIT, column / UNIT)),
        (motion, motion / UNIT),
    ):
        theirs = correlate(image.astype(float), square[:, :, None], mode="reflect")
        np.testing.assert_array_equal(blur(image, kernel), np.floor(theirs + 0.5))


@pytest.mark.parametrize("number", range(24))
def test_blur_is_the_exact_sum_rounded_half_up(number):
    rng = np.random.default_rng(number)
    height, width = rng.integers(12, 40, 2)
    image = rng.integers(0, 256, (height, width, 1 + 2 * (number % 2)), dtype=np.uint8)
    if number % 3 == 0:
        image = image // 128 * 255  # the steepest edges
    column = gaussian_kernel(rng.uniform(0.2, 3))
    motion = motion_kernel(rng.uniform(1, 12), 15.0 * number)

    both_ways = one_weight_after_the_other(image, column[:, None], column[None])
    once = one_weight_after_the_other(image, motion)

    np.testing.assert_array_equal(blur(image, column), both_ways)
    np.testing.assert_array_equal(blur(image, motion), once)


@pytest.mark.parametrize("length", [1, 60, 301.5])
def test_motion_over_few_or_many_pixels_is_exact_too(length):
    image = np.random.default_rng(0).integers(254, 256, (12, 16, 1), dtype=np.uint8)
    kernel = motion_kernel(length, 20)

    expected = one_weight_after_the_other(image, kernel)

    np.testing.assert_array_equal(blur(image, kernel), expected)


def test_sums_next_to_a_half_need_all_their_bits():
    """A float32 for each weight, or two lower bits more, would round this up."""
    image = np.full((3, 9, 1), 254, np.uint8)
    image[:, 5:] = 255
    nearly_half = np.array([[UNIT // 2 - 1, 2, UNIT // 2 - 1]], np.int32)

    np.testing.assert_array_equal(
        blur(image, nearly_half)[1, :, 0], [254, 254, 254, 254, 254, 255, 255, 255, 255]
    )


def test_as_many_weights_as_have_exact_sums():
    """The sum ends just below a half, and its lower bits fill a float32."""
    kernel = np.full((1, 4111), 255, np.int32)
    kernel[0, 2055] = UNIT - 4110 * 255
    image = np.full((1, 4111, 1), 143, np.uint8)
    image[0, np.delete(np.arange(4111), 2055)[:2351]] = 144
    image[0, 2055] = 0

    middle = blur_region(image, kernel, rows=(0, 1), columns=(2055, 2056))

    exact = int((kernel * image[:, :, 0].astype(np.int64)).sum())
    assert exact % UNIT == UNIT // 2 - 1
    assert middle.item() == exact // UNIT


@pytest.mark.parametrize(("side", "middle"), [(4113, 1), (3, 0), (3, -4)])
def test_kernels_that_have_no_exact_sums_are_refused(side, middle):
    kernel = np.full((1, side), 2, np.int32)
    kernel[0, side // 2] = middle

    with pytest.raises(ValueError, match=f"weights, {middle} in the middle.*shorter motion"):
        Weights.of(kernel)


def test_weights_that_all_share_are_not_to_be_written():
    assert not motion_weights(7, 30).weights.flags.writeable
    assert motion_weights(7, 30) is motion_weights(7, 30)


def test_sums_that_end_in_a_half_are_rounded_up():
    image = np.zeros((9, 9, 3), np.uint8)
    image[:, 5:] = 1
    halves = np.array([[UNIT // 4, UNIT // 2, UNIT // 4]], np.int32)

    np.testing.assert_array_equal(blur(image, halves)[4, :, 0], [0, 0, 0, 0, 0, 1, 1, 1, 1])
    image[:, 5:] = 2
    np.testing.assert_array_equal(blur(image, halves)[4, :, 0], [0, 0, 0, 0, 1, 2, 2, 2, 2])


def test_regions_equal_the_whole_image_blurred():
    image = photograph(1, height=50, width=60)

    for kernel in (gaussian_kernel(2.5), motion_kernel(20, 120)):
        whole = blur(image, kernel)
        for top, left in ((0, 0), (3, 44), (34, 1), (17, 22)):
            region = {"rows": (top, top + 16), "columns": (left, left + 16)}
            patch = blur_region(image, kernel, **region)
            np.testing.assert_array_equal(patch, whole[top : top + 16, left : left + 16])


@pytest.mark.parametrize("level", [0, 1, 255])
def test_flat_image_stays_flat_and_may_be_smaller_than_a_kernel(level):
    image = np.full((5, 3, 3), level, np.uint8)

    assert (blur(image, motion_kernel(25, 30)) == level).all()
    assert (blur(image, gaussian_kernel(3)) == level).all()


def test_no_motion_and_hardly_any_blur_leave_the_image():
    image = photograph(2)

    np.testing.assert_array_equal(blur(image, motion_kernel(1, 33)), image)
    np.testing.assert_array_equal(blur(image, gaussian_kernel(0.2)), image)


@pytest.mark.parametrize("length", [0.5, float("nan"), float("inf")])
def test_impossible_motion_is_refused(length):
    with pytest.raises(ValueError, match="length"):
        motion_kernel(length, 0)


@pytest.mark.parametrize("sigma", [0, -1, float("nan"), float("inf")])
def test_impossible_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        gaussian_kernel(sigma)
