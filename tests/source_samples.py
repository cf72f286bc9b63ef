"""Photographs in every form that a source can have, and a web server that can be told to fail."""

import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

from data_samples import encoded, execute, photograph
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.config import SourceConfig
from pipeline.data.source_index import SourceIndex
from pipeline.graph import Stage
from stages.source import source_stage

PAIRS = 6
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def encoded_photographs(count: int, *, height: int = 40, width: int = 44) -> dict[str, bytes]:
    """Every other one PNG and JPEG, by relative path."""
    contents = {}
    for number in range(count):
        image = Image.fromarray(photograph(number, height=height, width=width))
        kind, suffix = (("PNG", "png"), ("JPEG", "jpg"))[number % 2]
        contents[f"class{number % 3}/photograph {number}.{suffix}"] = encoded(image, kind)
    return contents


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tar_bytes(contents: Mapping[str, bytes], form: str = "gnu") -> bytes:
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=FORMATS[form]) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return target.getvalue()


def contents_of(index: SourceIndex) -> dict[str, bytes]:
    """Every photograph's bytes by name, as the workers read them."""
    return {index.name(number): index.read(number) for number in range(len(index))}


@contextmanager
def web_server(
    files: Mapping[str, bytes],
    *,
    faults: Mapping[str, list[str]] | None = None,
    headers: Mapping[str, str] | None = None,
    before: Callable[[str], object] = lambda path: None,
) -> Iterator[tuple[str, list[str]]]:
    """(address, paths asked for so far). The first answers for a path are its `faults`, in order:
    a status such as 503, "page" (another content), "cut" (fewer bytes than announced), "end" (as
    few, unannounced), "whole" (all, unannounced), "chunked", "length" (one that is none), "flip" (a
    byte altered), "hang" (no more of them for a while), "slow" (a second for all of it); then
    files. `before` is called with a path before each answer.
    """
    asked: list[str] = []
    waiting = {path: list(each) for path, each in (faults or {}).items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            before(self.path)
            fault = waiting[self.path].pop(0) if waiting.get(self.path) else ""
            status = int(fault) if fault.isdigit() else 200 if self.path in files else 404
            content = files.get(self.path, b"") if status == 200 else b""
            if fault == "page":
                content = b"<!DOCTYPE html><title>Please log in</title>"
            self.send_response(status)
            if fault == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
                content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
            elif fault not in ("end", "whole"):
                length = "12 bytes" if fault == "length" else str(len(content))
                self.send_header("Content-Length", length)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if fault == "flip":
                content = content[:600] + bytes([content[600] ^ 1]) + content[601:]
            if fault == "slow":
                for part in range(20):
                    ends = (len(content) * each // 20 for each in (part, part + 1))
                    self.wfile.write(content[slice(*ends)])
                    time.sleep(0.05)
                return
            half = fault in ("cut", "end", "hang")
            self.wfile.write(content[: len(content) // 2] if half else content)
            if fault == "hang":
                time.sleep(1)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_pairs(
    folder: Path, *, scale: int = 1, clean: str = "a/{}.png", corrupted: str = "a/{}.png"
) -> Path:
    """Pairs whose sides have nothing in common, so that only their place can make them fit."""
    for number in range(PAIRS):
        size = {"height": (21 + number) * scale, "width": (24 + number) * scale}
        small = {side: pixels // scale for side, pixels in size.items()}
        for side, name, seed, shape in (
            ("clean", clean, number, size),
            ("corrupted", corrupted, 100 + number, small),
        ):
            path = folder / side / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph(seed, **shape)).save(path)
    return folder


def pairs_stage(folder: Path, *, largest_crop: int = 8, **settings: object) -> Stage:
    source = SourceConfig(
        clean=str(folder / "clean"),
        corrupted=str(folder / "corrupted"),
        **({"validation_images": 2} | settings),
    )
    return source_stage("pairs", source, seed=0, largest_crop=largest_crop)


def listed_pairs(folder: Path) -> Artifact:
    artifact = execute(pairs_stage(folder), folder / "source")
    assert artifact is not None
    return artifact
