"""Where the pages of the benchmarks go. Never imports torch: some that write one must not."""

from pathlib import Path

from pipeline.artifacts import write_atomically


def write_page(page: str, out: Path | None) -> None:
    """Print the page, and write it where a file is named."""
    print(page)
    if out is not None:
        write_atomically(out, page)
