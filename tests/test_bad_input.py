"""What a folder of photographs may hold, through listing and corrupting: every file of it ends up
in a shard or in the list of skipped ones, and too many skipped ones stop the stage."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import (
    SMALL,
    corrupting_stage,
    encoded,
    execute,
    listed,
    photograph,
    png_of_size,
    sr3_settings,
    write_photographs,
)
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.data.shard_making import make_shard, plan_shards
from pipeline.graph import StageError

CROP = 24  # pixels; sr3 from patches of 8
COLOUR = Image.fromarray(photograph(0))
ALL_MAY_BE_SKIPPED = SMALL.model_copy(update={"most_skipped": 1.0})


def jpeg(image: Image.Image = COLOUR, **options: object) -> bytes:
    return encoded(image, "JPEG", quality=95, **options)


def png(image: Image.Image = COLOUR) -> bytes:
    return encoded(image, "PNG")


def turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return jpeg(exif=exif.tobytes())


def animated() -> bytes:
    frames = [Image.fromarray(photograph(number)).convert("P") for number in (0, 1)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def ycck() -> bytes:
    data = jpeg(COLOUR.convert("CMYK"))
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\x02" + data[transform + 1 :]


def sixteen_bits() -> bytes:
    return png(Image.fromarray(photograph(0)[:, :, 0].astype(np.uint16) * 257))


# name: bytes of the file, and why it is skipped, if it is
KINDS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "zero bytes.jpg": (lambda: b"", "empty file"),
    "truncated.jpg": (lambda: jpeg()[:-300], "truncated or damaged"),
    "truncated progressive.jpg": (lambda: jpeg(progressive=True)[:-300], "truncated or damaged"),
    "truncated.png": (lambda: png()[:-300], "truncated or damaged"),
    "a PNG.JPEG": (png, None),
    "a text.jpg": (lambda: b"no photograph", "not an image in a known format"),
    "cmyk.jpg": (lambda: jpeg(COLOUR.convert("CMYK")), None),
    "ycck.jpg": (ycck, None),
    "grey.jpg": (lambda: jpeg(COLOUR.convert("L")), None),
    "palette.png": (lambda: png(COLOUR.quantize(64)), None),
    "1-bit.png": (lambda: png(COLOUR.convert("1")), None),
    "16-bit.png": (sixteen_bits, None),
    "alpha.png": (lambda: png(COLOUR.convert("RGBA")), None),
    "rotated by EXIF.jpg": (turned, None),
    "animated.gif": (animated, None),
    "progressive.jpg": (lambda: jpeg(progressive=True), None),
    "decompression bomb.png": (lambda: png_of_size(20_000, 20_000), "too many pixels"),
    "1×1.png": (
        lambda: png(COLOUR.crop((0, 0, 1, 1))),
        f"smaller than a crop of {CROP} pixels",
    ),
    "narrower than a crop.png": (
        lambda: png(COLOUR.crop((0, 0, CROP - 1, 40))),
        f"smaller than a crop of {CROP} pixels",
    ),
    "exactly a crop.png": (lambda: png(COLOUR.crop((0, 0, CROP, CROP))), None),
    "with 'quotes' and \"more\".png": (png, None),
    "back\\slash.png": (png, None),
    "new\nline.png": (png, None),
    "grüße 写真 🌧.png": (png, None),
    "two.dots..png": (png, None),
    "-rf.png": (png, None),
    "UPPER.PNG": (png, None),
    "l" * 240 + ".png": (png, None),
}


@pytest.mark.parametrize("name", KINDS, ids=lambda name: name.encode("ascii", "replace")[:30])
def test_a_file_of_this_kind_is_in_a_shard_or_skipped_with_its_reason(
    name: str, tmp_path: Path
) -> None:
    data, reason = KINDS[name]
    photographs = write_photographs(tmp_path / "in", 2)
    (photographs / name).write_bytes(data())

    described, skipped = made_from(photographs, tmp_path)

    if reason is None:
        assert described.count(name) == SMALL.crops_per_image
        assert skipped == {}
    else:
        assert name not in described
        assert skipped == {name: reason}


def made_from(photographs: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The photograph of every sample, and the kind of reason for each that was skipped.

    By the function that workers call, in this process.
    """
    source = listed(photographs, folder / "source", held_out=["class1/*"])
    settings = sr3_settings(folder, source, photographs, samples_per_shard=100)
    described: list[str] = []
    skipped: dict[str, str] = {}
    for unit in plan_shards(3, 1, settings):
        record = make_shard(settings, unit, after_image=lambda: None)
        tar = (folder / record.file).read_bytes()
        assert record.stride is not None
        for end in range(record.stride, record.samples * record.stride + 1, record.stride):
            described.append(json.loads(tar[end - 512 : end])["source"])
        skipped |= {each["path"]: each["kind"] for each in record.skipped}
    return described, skipped


def with_damaged(folder: Path, good: int, damaged: int) -> Path:
    photographs = write_photographs(folder, good)
    for number in range(damaged):
        (photographs / f"damaged {number}.jpg").write_bytes(b"")
    (photographs / "narrow.png").write_bytes(png(COLOUR.crop((0, 0, 5, 40))))
    return photographs


def corrupt(photographs: Path, folder: Path, most_skipped: float) -> Artifact | None:
    config = SMALL.model_copy(update={"most_skipped": most_skipped})
    source = listed(photographs, folder / "source")
    return execute(corrupting_stage("sr3", photographs, config), folder, {"source": source})


def test_more_skipped_photographs_than_the_config_allows_stop_the_stage(tmp_path: Path) -> None:
    photographs = with_damaged(tmp_path / "in", good=15, damaged=4)

    with pytest.raises(
        StageError,
        match=r"^sr3: 5 of 20 photographs \(25.0%\) were skipped, more than corrupt.most_skipped: "
        r"0.24 allows: empty file \(4\), smaller than a crop of 24 pixels \(1\); .* raise "
        r"corrupt.most_skipped; what is made is kept$",
    ):
        corrupt(photographs, tmp_path / "out", 0.24)

    # A quarter is allowed now, and nothing that was made is made again.
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("*.tar")}
    artifact = corrupt(photographs, tmp_path / "out", 0.25)
    assert made
    assert artifact is not None
    assert artifact.manifest.summary["skipped_images"] == 5
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_photographs_that_could_not_be_listed_count_as_skipped(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "in", 6)
    for number in range(2):
        (photographs / f"{number}.png").symlink_to("gone")

    with pytest.raises(StageError, match=r"^sr3: 2 of 8 photographs \(25.0%\) .*not listed \(2\);"):
        corrupt(photographs, tmp_path / "out", 0.24)
    artifact = corrupt(photographs, tmp_path / "out", 0.25)

    assert artifact is not None
    assert artifact.manifest.summary["skipped_images"] == 0


def test_the_stage_stops_as_soon_as_too_many_are_certain(tmp_path: Path) -> None:
    photographs = with_damaged(tmp_path / "in", good=8, damaged=71)

    with pytest.raises(StageError, match=r"corrupt.most_skipped: 0\.1 allows: empty file"):
        corrupt(photographs, tmp_path / "out", 0.1)

    # 26 shards of training and one of validation; nine skipped photographs are enough.
    assert 4 <= len(list((tmp_path / "out" / "shards").glob("*.json"))) < 20


def test_the_share_of_skipped_photographs_is_in_no_fingerprint(tmp_path: Path) -> None:
    fingerprints = {
        corrupting_stage("sr3", tmp_path, config).fingerprint({"source": "x"})
        for config in (SMALL, ALL_MAY_BE_SKIPPED)
    }

    assert len(fingerprints) == 1
