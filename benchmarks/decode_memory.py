"""How much memory it takes to decode the largest photograph that is read, by its kind.

    python -m benchmarks.decode_memory [--out decode_memory.md]

Every kind is made as large as it is read, at most 2^26 pixels of 8192 a row, and decoded in a
process of its own, the imports of a worker included. Exit code 1 where one takes 400 MiB.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python puts benchmarks/ first, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from benchmarks.measuring import MEBIBYTE, circumstances, processor, table
from benchmarks.pages import write_page
from pipeline.data.decoding_memory import MOST_MEMORY
from pipeline.data.source import LARGEST_PIXELS

WIDTH = 8192
ROWS = 64  # heights are multiples of so many
MOST = 400
Saved = Callable[[np.ndarray], bytes]
# VmHWM, as getrusage's peak is also that of the process that started this one.
CHILD = """
import json, sys
from pathlib import Path
import pipeline.data.shard_making
from pipeline.data.source import UnreadablePhotograph, decode_photograph
from pipeline.data.decoding_memory import MOST_MEMORY
held, reason = [], None
try:
    for path in sys.argv[1:]:
        left = MOST_MEMORY - sum(each.nbytes for each in held)
        held.append(decode_photograph(Path(path).read_bytes(), most_memory=left))
except UnreadablePhotograph as error:
    reason = str(error)
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"MiB": int(peak.split()[1]) / 1024, "refused": reason}))
"""


def saved(mode: str, kind: str, **options: object) -> Saved:
    """What writes pixels (H, W, 4) in a mode of Pillow's as a file."""

    def save(pixels: np.ndarray) -> bytes:
        image = Image.fromarray(pixels[:, :, 0]).convert("P" if mode == "P" else "L")
        if mode == "I;16":
            image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
        elif len(mode) > 1:
            image = Image.fromarray(np.ascontiguousarray(pixels[:, :, : len(mode)]), mode)
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return save


def as_ycck(pixels: np.ndarray) -> bytes:
    data = saved("CMYK", "JPEG")(pixels)
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\2" + data[transform + 1 :]


TURNED = Image.Exif()
TURNED[274] = 6
KINDS: dict[str, Saved] = {
    "JPEG": saved("RGB", "JPEG"),
    "JPEG, grey": saved("L", "JPEG"),
    "JPEG, turned by EXIF": saved("RGB", "JPEG", exif=TURNED.tobytes()),
    "JPEG, CMYK": saved("CMYK", "JPEG"),
    "JPEG, YCCK": as_ycck,
    "progressive JPEG, 4:2:0": saved("RGB", "JPEG", progressive=True),
    "progressive JPEG, 4:4:4": saved("RGB", "JPEG", progressive=True, subsampling=0),
    "progressive JPEG, CMYK": saved("CMYK", "JPEG", progressive=True),
    "PNG": saved("RGB", "PNG", compress_level=1),
    "PNG, grey": saved("L", "PNG", compress_level=1),
    "PNG, palette": saved("P", "PNG", compress_level=1),
    "PNG, alpha": saved("RGBA", "PNG", compress_level=1),
    "PNG, 16-bit grey": saved("I;16", "PNG", compress_level=1),
    "TIFF": saved("RGB", "TIFF"),
    "TIFF, deflated": saved("RGB", "TIFF", compression="tiff_deflate"),
    "TIFF, turned by EXIF": saved("RGB", "TIFF", tiffinfo={274: 6}),
    "BMP": saved("RGB", "BMP"),
    "WEBP": saved("RGB", "WEBP", method=0),
    "WEBP, alpha": saved("RGBA", "WEBP", method=0),
    "JPEG 2000": saved("RGB", "JPEG2000"),
    "JPEG 2000, alpha": saved("RGBA", "JPEG2000"),
}


def pixels_of(height: int) -> np.ndarray:
    """Smooth ones, which every format makes small: (height, WIDTH, 4)."""
    rows, columns = np.ogrid[:height, :WIDTH]
    pixels = np.empty((height, WIDTH, 4), np.uint8)
    for channel in range(4):
        pixels[:, :, channel] = (rows >> 3 + channel) + (columns >> 6 - channel)
    return pixels


def largest(save: Saved, folder: Path, *, copies: int = 1) -> tuple[int, int, float, str]:
    """Rows and bytes of the largest that is read, its peak in MiB, and why none is larger."""
    path, height, reason, peak = folder / "photograph", LARGEST_PIXELS // WIDTH, "", 0.0
    while True:
        path.write_bytes(save(pixels_of(height)))
        child = [sys.executable, "-c", CHILD, *[str(path)] * copies]
        found = json.loads(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)
        peak = max(peak, found["MiB"])  # to refuse one must not take more
        if found["refused"] is None:
            return height, path.stat().st_size, peak, reason
        reason = reason or found["refused"]
        told = found["refused"].partition(" take ")[2].split()[0].replace(",", "")
        taken = int(told) * copies * MEBIBYTE
        height = min(height - ROWS, int(height * MOST_MEMORY / taken)) // ROWS * ROWS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file for what is printed")
    out: Path | None = parser.parse_args().out
    rows, peaks = [], []
    with tempfile.TemporaryDirectory(prefix="ipt-decode-") as name:
        for kind, save, copies in [
            *((kind, save, 1) for kind, save in KINDS.items()),
            ("two JPEGs, a real pair", KINDS["JPEG"], 2),
        ]:
            height, size, peak, reason = largest(save, Path(name), copies=copies)
            peaks.append(peak)
            rows.append(
                [kind, f"{height * WIDTH / 1e6:.1f}", f"{size / 2**20:.1f}", f"{peak:.0f}", reason]
            )
            print(rows[-1], file=sys.stderr, flush=True)
    header = ["kind", "million pixels", "file, MiB", "peak, MiB", "2^26 pixels"]
    page = f"# Memory of decoding\n\n{circumstances(processor())}\n{table(header, rows)}"
    write_page(page, out)
    return 1 if max(peaks) >= MOST else 0


if __name__ == "__main__":
    sys.exit(main())
