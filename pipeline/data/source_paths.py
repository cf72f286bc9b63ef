"""What the path of a source names, by its form alone."""

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.data.patterns import PatternError, ascii_url, expand_braces, parse_dataset

Kind = Literal["folder", "tars", "parquet", "dataset", "urls"]
_UNPACKERS = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd"}
_LOGIN = re.compile(r"://[^/?#]*@")
_COMPRESSED_TAR = re.compile(r"\.(?:tar\.|t)(gz|bz2|xz|zst)$")


def source_kind(path: str) -> Kind:
    """What the path names, where `check_form` has nothing against it."""
    if path.startswith("hf:"):
        return "dataset"
    return min(map(_kind, _alternatives(path)))


def check_form(path: str) -> None:
    """Raise PatternError for what no listing can read, before anything is made."""
    if any(map(_LOGIN.search, [path, *_alternatives(path)])):  # shown nowhere, not here either
        raise PatternError(
            "an address with a user name or a password before its host, which is not sent; name "
            "one that is signed (https://host/name.tar?token=…), or download the tars and name the "
            "files"
        )
    if source_kind(path) == "dataset":
        parse_dataset(path)
        return
    if source_kind(path) != "folder":
        expand_braces(path)
    kinds: set[Kind] = set()
    for each in _alternatives(path):
        _check_alternative(each)
        kinds.add(_kind(each))
    if len(kinds) > 1:
        raise PatternError(
            f"{path}: names what is read differently ({', '.join(sorted(kinds))}); "
            "make a source of each"
        )


def _kind(path: str) -> Kind:
    if path.startswith(("http://", "https://")):
        return "urls"
    kinds: dict[str, Kind] = {".tar": "tars", ".parquet": "parquet"}
    return kinds.get(Path(path).suffix, "folder")


def _alternatives(path: str) -> list[str]:
    try:
        return expand_braces(path)
    except PatternError:  # names of folders may have any braces
        return [path]


def _check_alternative(path: str) -> None:
    if _kind(path) == "urls":
        try:
            ascii_url(path)
        except ValueError as error:
            raise PatternError(
                f"{path}: no address ({error}); write it as https://host/name-{{000..146}}.tar"
            ) from None
        if not urlsplit(path).path.endswith(".tar"):
            raise PatternError(f"{path}: only tars (.tar, uncompressed) are read by URL")
    elif "://" in path:
        raise PatternError(f"{path}: only https:// and http:// are read by URL")
    elif compressed := _COMPRESSED_TAR.search(path):
        if os.path.isdir(os.path.expanduser(path)):
            return
        raise PatternError(
            f"{path}: compressed tars are not read; run {_UNPACKERS[compressed[1]]} on it and name "
            "the .tar, or unpack it with tar and name the folder"
        )
