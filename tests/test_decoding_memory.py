"""What a worker may take, what is refused for it, and that lack of memory is no damage."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from data_samples import (
    corrupting_stage,
    encoded,
    execute,
    listed,
    photograph,
    png,
    png_of_16_bits,
    png_of_size,
    write_photographs,
)
from PIL import Image

from pipeline.data import source
from pipeline.data.decoding_memory import MOST_MEMORY, pillow_memory
from pipeline.data.source import UnreadablePhotograph, decode_photograph, read_photograph
from pipeline.data.source_index import SourceIndex
from pipeline.graph import StageError

MEBIBYTE = 2**20
PHOTOGRAPH = photograph(0, height=70, width=90)
RGB = Image.fromarray(PHOTOGRAPH)
RGBA = Image.fromarray(np.dstack([PHOTOGRAPH, PHOTOGRAPH[:, :, 1]]), "RGBA")
GREY_16 = Image.fromarray(PHOTOGRAPH[:, :, 0].astype(np.uint16) * 201)


def ycck(image: Image.Image, **options: object) -> bytes:
    data = encoded(image.convert("CMYK"), "JPEG", **options)
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\x02" + data[transform + 1 :]


def transparent_palette() -> bytes:
    return encoded(RGB.quantize(64), "PNG", transparency=bytes(range(64)))


def whole(data: bytes) -> np.ndarray:
    """As it is converted at once."""
    with warnings.catch_warnings(), Image.open(BytesIO(data)) as image:
        warnings.simplefilter("ignore")
        if image.mode.startswith("I"):
            levels = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
            return np.dstack([levels.astype(np.uint8)] * 3)
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize(
    "data",
    [
        encoded(RGB.convert("CMYK"), "JPEG", quality=90),
        encoded(RGB.convert("CMYK"), "JPEG", progressive=True),
        encoded(RGB.convert("CMYK"), "JPEG", subsampling=2),
        ycck(RGB),
        ycck(RGB, subsampling=2),
        encoded(RGB, "JPEG", progressive=True),
        encoded(RGBA, "PNG"),
        encoded(RGBA.convert("LA"), "PNG"),
        encoded(RGB.convert("1"), "PNG"),
        transparent_palette(),
        png_of_16_bits(PHOTOGRAPH, 2),
        encoded(GREY_16, "PNG"),
        encoded(GREY_16, "TIFF"),
        encoded(RGBA, "TIFF", compression="tiff_deflate", tiffinfo={274: 6}),
        encoded(RGBA, "WEBP"),
        encoded(RGB.quantize(64), "GIF"),
        encoded(RGB, "JPEG2000"),
    ],
)
def test_bands_are_converted_as_the_whole_is(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_PIXELS_AT_ONCE", 7 * 90)

    image = decode_photograph(data)

    assert image.dtype == np.uint8
    assert np.array_equal(image, whole(data))


SWEEP = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.data.source import decode_photograph
path = Path(sys.argv[1])
data = path.read_bytes()
expected = decode_photograph(data)
held = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
lacked = read = 0
for more in (*range(-8, 80, 2), 200):
    resource.setrlimit(resource.RLIMIT_AS, (held + more * 2**20, resource.RLIM_INFINITY))
    try:
        equal = np.array_equal(decode_photograph(data), expected)
    except MemoryError:
        lacked += 1
    else:
        assert equal
        read += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
print(lacked, read)
"""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {"method": 0}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ],
)
def test_lack_of_memory_is_never_said_to_be_damage(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    image = Image.fromarray(photograph(0, height=1300, width=1400))
    path = tmp_path / "photograph"
    path.write_bytes(encoded(image, kind, **options))

    done = in_new_process(SWEEP, path)

    lacked, read = map(int, done.split())
    assert lacked > 3
    assert read > 0


def in_new_process(code: str, *paths: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_memory_that_libjpeg_lacks_stops_the_stage_and_a_rerun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = tmp_path / "in"
    photographs.mkdir()
    for number in range(4):
        image = Image.fromarray(photograph(number))
        image.save(photographs / f"{number}.jpg", progressive=True)
    stage, inputs = corrupting_stage("sr3", photographs), {}
    inputs["source"] = listed(photographs, tmp_path / "source")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "simplejpeg.py").write_text(
        "def decode_jpeg_header(data):\n    return 40, 44, 'YCbCr', '420'\n"
        "def decode_jpeg(data, **_):\n    raise ValueError('Insufficient memory (case 4)')\n"
    )

    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path / "path")  # the workers import it, this process not
        with pytest.raises(
            StageError,
            match=r"in/\d.jpg: not enough memory to decode it; give the job more memory or lower "
            r"runtime.workers \(1\), and run this again",
        ):
            execute(stage, tmp_path / "out", inputs)
    artifact = execute(stage, tmp_path / "out", inputs)

    assert artifact is not None
    assert artifact.manifest.summary["skipped_images"] == 0


def test_a_listing_that_lacks_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RGB.save(tmp_path / "a.png")

    def refuse(needed: int) -> None:
        raise MemoryError

    monkeypatch.setattr(source, "check_there", refuse)

    with pytest.raises(StageError, match=r"a.png: not enough memory to decode it; give the job"):
        listed(tmp_path, tmp_path / "out")


PEAK = """
import sys
from pathlib import Path
import pipeline.data.shard_making
from pipeline.data.source import decode_photograph
decode_photograph(Path(sys.argv[1]).read_bytes())
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
"""


def largest_png() -> bytes:
    """RGB takes 7 bytes a pixel: 4 of Pillow's and, converted, 3."""
    rows = MOST_MEMORY // 7 // 8192
    return png(8192, rows, bytes((3 * 8192 + 1) * rows))


def largest_progressive() -> bytes:
    """Halved colours take 6 bytes a pixel: 3 of coefficients, 3 decoded."""
    rows = (MOST_MEMORY - MEBIBYTE) // 6 // 8192
    return encoded(Image.new("RGB", (8192, rows)), "JPEG", progressive=True)


@pytest.mark.slow
@pytest.mark.parametrize("make", [largest_png, largest_progressive])
def test_a_worker_stays_below_400_mebibytes(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = tmp_path / "photograph"
    path.write_bytes(make())

    peak = int(in_new_process(PEAK, path)) * 1024

    assert 0.9 * MOST_MEMORY < peak < 400 * MEBIBYTE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png_of_size(8192, 8192), r"8192×8192 pixels of this PNG take 448 MiB; at most 320"),
        (
            encoded(Image.new("L", (6000, 6000)).convert("CMYK"), "JPEG", progressive=True),
            r"6000×6000 pixels of this JPEG take 41\d MiB; at most 320",
        ),
    ],
)
def test_what_would_take_too_much_is_refused_before_it_is_decoded(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadablePhotograph, match=rf"too much memory \({reason}\)") as raised:
        decode_photograph(data)

    assert raised.value.kind == "too much memory"


def test_a_strip_and_a_tile_larger_than_its_tiff_are_counted() -> None:
    data = encoded(RGB, "TIFF", compression="tiff_deflate")
    with Image.open(BytesIO(data)) as image:
        before = pillow_memory(image, len(data))
        image.tag_v2[322] = image.tag_v2[323] = 40_000

        assert pillow_memory(image, len(data)) - before > 40_000**2


def test_the_corrupted_version_of_a_pair_has_what_the_clean_one_leaves(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 4)
    index = SourceIndex(listed(photographs, tmp_path / "out").folder, photographs)
    needed = 7 * 40 * 44

    index.photograph(0, held=MOST_MEMORY - needed - 4096)

    with pytest.raises(UnreadablePhotograph, match="too much memory"):
        index.photograph(0, held=MOST_MEMORY - needed + 1)


def test_a_file_larger_than_the_memory_left_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = write_photographs(tmp_path / "in", 4)
    index = SourceIndex(listed(photographs, tmp_path / "out").folder, photographs)
    large = tmp_path / "large.tif"
    with large.open("wb") as file:
        file.truncate(MOST_MEMORY + 1)  # a hole
    monkeypatch.setattr(SourceIndex, "read", None)
    monkeypatch.setattr(Path, "read_bytes", None)

    with pytest.raises(UnreadablePhotograph, match=r"too many bytes \(.*; at most 100\)"):
        index.photograph(0, held=MOST_MEMORY - 100)
    with pytest.raises(UnreadablePhotograph, match=r"too many bytes \(335,544,321; at most 335,"):
        read_photograph(large)


@pytest.mark.parametrize(("progressive", "bytes_a_pixel"), [(False, 3), (True, 6)])
def test_a_jpeg_is_asked_only_what_it_takes_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, progressive: bool, bytes_a_pixel: int
) -> None:
    data = encoded(RGB, "JPEG", progressive=progressive)
    there = len(data) + bytes_a_pixel * 90 * 70

    def check(needed: int) -> None:
        if needed > there:
            raise MemoryError

    monkeypatch.setattr(source, "check_there", check)

    assert decode_photograph(data).shape == PHOTOGRAPH.shape
    there -= 1
    with pytest.raises(MemoryError):
        decode_photograph(data)
