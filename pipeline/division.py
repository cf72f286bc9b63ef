"""What a number can be divided by, for messages that say what would fit."""

from collections.abc import Sequence


def divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def one_of(numbers: Sequence[int]) -> str:
    """As a sentence lists them: 1, 2 or 4."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
