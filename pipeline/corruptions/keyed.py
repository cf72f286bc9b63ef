"""The one way that the project gets randomness: a generator that is a function of a key.

Whatever is drawn for a sample depends on its key alone: not on which process drew it, nor on what
was drawn before.
"""

import numpy as np

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
    # Philox takes 128 bits.
    return np.random.Generator(np.random.Philox(key=int(digest[:32], 16)))
