"""Something done again and again beside the work, from a thread of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(do: Callable[[], None], *, every: float, name: str) -> Iterator[None]:
    """Within, `do` is called after each `every` seconds; the thread has ended afterwards."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(every):
            do()

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
