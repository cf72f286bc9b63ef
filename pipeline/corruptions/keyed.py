"""The one way that the project gets randomness: a generator that is a function of a key.

Whatever is drawn depends on the key alone: not on which process drew it, nor on what was drawn for
other keys before. All crops of a photograph share a key, and are drawn in order.
"""

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

from pipeline.artifacts import canonical_digest


def generator(*key: str | int) -> np.random.Generator:
    """A Philox generator keyed by the SHA-256 of the parts of `key`.

    Parts keep their types and borders: ("1",) and (1,), or ("ab", "c") and ("a", "bc"), give
    unrelated streams.
    """
    if not key:
        raise ValueError("a keyed generator needs at least one key part, such as the seed")
    for part in key:
        # True equals 1 in Python and differs in JSON; NumPy's integers are not JSON at all.
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise TypeError(f"key part {part!r} of {key} is neither a str nor an int")
    digest = canonical_digest(list(key))
    # NumPy's stubs name one class of seeds where any that is an ISeedSequence is taken.
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """A key for Philox as it is. Given by name, `Philox(key=…)`, it is the same, but that also asks
    the operating system for a seed which it doesn't use, and takes three times as long."""

    def __init__(self, digest: str) -> None:
        self._words = [int(digest[16:32], 16), int(digest[:16], 16)]  # the lower 64 bits first

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[np.uint64]:
        """Philox's key of 128 bits; nothing else is asked for."""
        assert (n_words, dtype) == (2, np.uint64)
        return np.array(self._words, np.uint64)
