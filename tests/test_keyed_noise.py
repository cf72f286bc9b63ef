import hashlib
from statistics import NormalDist

import numpy as np
import pytest
import torch

from pipeline.data import noise, order
from pipeline.data.noise import noise_levels, noisy, standard_normal
from pipeline.tasks import GaussianNoise

KEYS = torch.from_numpy(order.mix(np.arange(600, dtype=np.uint64)).view(np.int64))


def test_mix_is_that_of_the_order() -> None:
    ours = noise.mix(KEYS).numpy().view(np.uint64)

    assert np.array_equal(ours, order.mix(KEYS.numpy().view(np.uint64)))


def test_numbers_are_sums_of_two_quantiles_at_the_places_that_splitmix64_gives() -> None:
    """Computed once more, with Python's integers."""

    def quantile(lane: int) -> int:
        signed = lane - 2**16 if lane >= 2**15 else lane
        return round(NormalDist().inv_cdf((signed + 2**15 + 0.5) / 2**16) * 2**20)

    def splitmix64(state: int) -> int:
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    key = int(KEYS[3]) % 2**64
    words = [splitmix64((key + turn * 0x9E3779B97F4A7C15) % 2**64) for turn in (1, 2, 3)]
    lanes = [quantile(word >> 16 * part & 0xFFFF) for word in words for part in range(4)]

    numbers, _ = standard_normal(KEYS[3:4], 6)

    expected = [one + other for one, other in zip(lanes[:6], lanes[6:], strict=True)]
    assert numbers[0].tolist() == expected


def test_bits_are_the_same_on_every_machine_and_version() -> None:
    clean = torch.arange(2 * 3 * 48 * 48, dtype=torch.int64).view(2, 3, 48, 48).to(torch.uint8)

    unclipped = noisy(clean, KEYS[:2], GaussianNoise(sigma_255=(0, 55), clip=False))
    clipped = noisy(clean, KEYS[:2], GaussianNoise(sigma_255=50))

    digest = hashlib.sha256(unclipped.numpy().tobytes() + clipped.numpy().tobytes())
    assert digest.hexdigest()[:16] == "128561adc6211749"


def test_numbers_follow_the_normal_distribution() -> None:
    numbers, deviation = standard_normal(KEYS, 6912)
    values = numbers.double().flatten() / deviation  # 4 million

    count = len(values)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):  # deviations of the mean, all below 4
        spread = (values**power).std() / count**0.5
        assert abs((values**power).mean() - moment) < 4 * spread, power
    ranks = (torch.arange(count) + 0.5) / count
    distance = (torch.special.ndtr(values.sort().values) - ranks).abs().max()
    assert distance * count**0.5 < 1.95  # Kolmogorov and Smirnov: exceeded once in a thousand
    assert values.abs().max() > 4.5


def test_numbers_of_a_sample_are_unrelated_to_their_neighbours_and_to_other_samples() -> None:
    numbers, deviation = standard_normal(KEYS, 6912)
    values = numbers / deviation
    spread = values.numel() ** -0.5

    for shift in (1, 2, 3, 48, 3456):
        assert (values[:, shift:] * values[:, :-shift]).mean().abs() < 5 * spread
    assert (values[1:] * values[:-1]).mean().abs() < 5 * spread
    neighbours, _ = standard_normal(KEYS + 1, 6912)
    assert (values * neighbours / deviation).mean().abs() < 5 * spread


def test_noise_of_a_sample_does_not_depend_on_the_batch_it_is_in() -> None:
    clean = torch.full((5, 3, 9, 7), 100, dtype=torch.uint8)
    spec = GaussianNoise(sigma_255=(5, 60))

    together = noisy(clean, KEYS[:5], spec)

    alone = [noisy(clean[:1], KEYS[place : place + 1], spec) for place in range(5)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("sigma_255", [15.0, 30, 50])
def test_noise_has_its_level_and_is_clipped_only_if_told(sigma_255: float) -> None:
    clean = torch.full((64, 3, 48, 48), 20, dtype=torch.uint8)

    free = noisy(clean, KEYS[:64], GaussianNoise(sigma_255=sigma_255, clip=False))
    clipped = noisy(clean, KEYS[:64], GaussianNoise(sigma_255=sigma_255, clip=True))

    added = free.double() * 255 - 20
    assert added.std().item() == pytest.approx(sigma_255, rel=3e-3)
    assert abs(added.mean()) < 5 * sigma_255 / added.numel() ** 0.5
    assert free.min() < 0
    assert torch.equal(clipped, free.clamp(0, 1))


def test_levels_fill_their_range_evenly() -> None:
    levels = noise_levels(KEYS, (10.0, 50.0))

    assert levels.min() >= 10
    assert levels.max() <= 50
    counts = torch.histc(levels, bins=6, min=10, max=50)
    assert ((counts - 100) ** 2 / 100).sum() < 20.5  # chi-square, 5 degrees: once in a thousand
    assert noise_levels(KEYS[:3], 30).tolist() == [30, 30, 30]
