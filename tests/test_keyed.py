import itertools

import numpy as np
import pytest

from pipeline.artifacts import canonical_digest
from pipeline.corruptions.keyed import generator


def first_draws(*key: str | int) -> list[int]:
    return generator(*key).integers(0, 2**63, 4).tolist()


def test_same_key_gives_same_stream():
    key = ("crops", 7, "0123456789abcdef", "derain")

    assert first_draws(*key) == first_draws(*key)


def test_stream_of_a_key_never_changes():
    # Golden: a change here changes every shard that was ever written.
    assert generator(0, "rain-layers", 0).bit_generator.random_raw(3).tolist() == [
        9244644611001589296,
        5918183166306400985,
        6499042150907720726,
    ]


def test_stream_is_that_of_philox_keyed_by_the_digest():
    for key in [(0,), ("crops", 7, "0123456789abcdef", "jpeg"), ("größe", -(2**70))]:
        digest = canonical_digest(list(key))
        expected = np.random.Generator(np.random.Philox(key=int(digest[:32], 16)))
        ours = generator(*key)

        assert ours.standard_normal(5).tolist() == expected.standard_normal(5).tolist()
        assert ours.integers(0, 400, 9).tolist() == expected.integers(0, 400, 9).tolist()
        assert ours.gamma(1.5, size=3).tolist() == expected.gamma(1.5, size=3).tolist()


def test_generators_alive_at_once_share_nothing():
    one, same, other = generator("a"), generator("a"), generator("b")

    drawn = [(one.random(), other.random()) for _ in range(5)]

    assert [same.random() for _ in range(5)] == [first for first, _ in drawn]
    alone = generator("b")
    assert [alone.random() for _ in range(5)] == [second for _, second in drawn]


def test_types_and_borders_of_key_parts_count():
    keys = [
        ("1",),
        (1,),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        (1, 2),
        (12,),
        ("1", "2"),
        ("",),
        (0,),
    ]

    for one, other in itertools.combinations(keys, 2):
        assert first_draws(*one) != first_draws(*other), (one, other)


def test_negative_and_huge_integers_are_keys_too():
    assert first_draws(-1) != first_draws(1)
    assert first_draws(2**200) != first_draws(2**200 + 1)


def test_words_beyond_ascii_are_keys_too():
    assert first_draws("größe") != first_draws("grösse")


@pytest.mark.parametrize("part", [True, 1.0, None, b"1", np.int64(1), ("1",)])
def test_other_key_parts_are_refused(part):
    with pytest.raises(TypeError, match="neither a str nor an int"):
        generator("seed", part)


def test_empty_key_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        generator()


def test_neighbouring_keys_are_unrelated():
    draws = np.stack([generator(0, "sr2", number).standard_normal(1000) for number in range(100)])

    correlation = np.corrcoef(draws) - np.eye(100)

    # 4950 pairs of correlations with deviation 1/sqrt(1000) = 0.032: five deviations.
    assert abs(correlation).max() < 0.16
