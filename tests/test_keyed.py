import itertools

import numpy as np
import pytest

from pipeline.corruptions.keyed import generator


def first_draws(*key: str | int) -> list[int]:
    return generator(*key).integers(0, 2**63, 4).tolist()


def test_same_key_gives_same_stream():
    assert first_draws(7, "0123456789abcdef", "derain", 3) == first_draws(
        7, "0123456789abcdef", "derain", 3
    )


def test_stream_of_a_key_never_changes():
    # Golden: a change here changes every shard that was ever written.
    assert generator(0, "rain-layers", 0).bit_generator.random_raw(3).tolist() == [
        9244644611001589296,
        5918183166306400985,
        6499042150907720726,
    ]


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
