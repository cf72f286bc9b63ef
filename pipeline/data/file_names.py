"""Which files are photographs, by their names alone. Imports nothing heavy."""

from pathlib import Path

PHOTOGRAPH_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)


def is_photograph_file(path: Path) -> bool:
    """Whether the name says so, and isn't hidden."""
    return path.suffix.lower() in PHOTOGRAPH_SUFFIXES and not path.name.startswith(".")
