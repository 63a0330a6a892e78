"""Notes on files below a data path that are not read: silence would suggest that all are."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from wcl_ray.data.sources.listing import METADATA_FILES, Files, is_image, suffix_of
from wcl_ray.storage import WILDCARDS

TRAIN = ("train", "training")
EVALUATION = ("val", "valid", "validation", "dev", "test", "testing", "eval")
# suffixes of images that neither Pillow nor torchvision reads, or only some builds do
UNSUPPORTED = (
    "heic", "heif", "avif", "jxl", "jp2", "j2k", "svg", "psd", "ai", "eps", "pdf", "tga",
    "ico", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "raw", "dcm",
)  # fmt: skip
TABLES = ("csv", "tsv", "json", "jsonl", "xlsx", "xls", "ods", "parquet", "pq", "parq", "feather")
PACKED = ("zip", "gz", "tgz", "zst", "bz2", "xz", "rar", "7z", "arrow")
SHOWN = 5  # names in a note


def unread_note(
    files: Files, read: Files, kind: str, listed: Iterable[str] | None = None
) -> str | None:
    """One line on the files below a path that are not read; None if all are.

    Args:
        read: files that are read.
        kind: format of the source.
        listed: paths of the images that metadata tables name.
    """
    read_paths = frozenset[str]() if kind == "folder" else frozenset(read.paths)
    names = None if listed is None else set(map(_normalised, listed))
    parts: list[str] = []
    tables, others, unsupported, unlisted = [], Counter[str](), Counter[str](), 0
    for path in files.paths:
        suffix, base = suffix_of(path), path.rpartition("/")[2]
        if path in read_paths or (kind == "folder" and base in METADATA_FILES):
            continue
        if is_image(path) and kind == "folder":
            unlisted += names is not None and _normalised(path) not in names
        elif suffix in UNSUPPORTED:
            unsupported[suffix] += 1
        elif suffix in TABLES and (kind == "folder" or suffix != "json"):
            tables.append(files.relative(path))
        else:
            others[suffix] += 1
    if unsupported:
        parts.append(f"{_counts(unsupported)} (format not supported; convert to JPEG or PNG)")
    if unlisted:
        parts.append(f"{unlisted} images that the metadata table does not name")
    if tables:
        hint = "give a metadata table with --data.table, or call it metadata.csv"
        if kind != "folder":
            hint = f"the path is read as {kind}; give a metadata table with --data.table"
        parts.append(f"{_shortened(tables)} ({hint})")
    if others:
        packed = " (unpack it)" if set(others) & set(PACKED) else ""
        parts.append(f"{_counts(others)}{packed}")
    listed_folders = {files.relative(path).split("/")[0] for path in names or ()}
    folders = [name for name in files.folders if name not in listed_folders]
    if folders:
        parts.append(
            f"the sub-folders {_shortened(folders)} (a glob reads them: {folder_of(files)}/**/*)"
        )
    return f"not read in {files.uri}: {'; '.join(parts)}" if parts else None


def _normalised(path: str) -> str:
    """The path in one spelling, see :mod:`wcl_ray.data.sources.files`."""
    return posixpath.normpath(unicodedata.normalize("NFC", path.replace("\\", "/")))


def _counts(suffixes: Counter[str]) -> str:
    return _shortened(
        [f"{n} .{s}" if s else f"{n} without a suffix" for s, n in suffixes.most_common()]
    )


def _shortened(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def splits_of(names: Iterable[str]) -> list[str]:
    """Folders or file name prefixes that name splits of a data set (train, val, test).

    Looks at the first folder below those that all paths share, or at the start of file names.
    The training split comes first. Empty unless there is a training split and another one.
    """
    paths = list(names)
    above = posixpath.commonpath([path.rpartition("/")[0] for path in paths]) if paths else ""
    start = f"{above}/" if above else ""
    prefixes = Counter(
        start + re.split(r"[/]|[-_.]\d|[-_.]of|\.", path.removeprefix(start), maxsplit=1)[0]
        for path in paths
    )
    train = [prefix for prefix in prefixes if _split_name(prefix) in TRAIN]
    others = sorted(prefix for prefix in prefixes if _split_name(prefix) in EVALUATION)
    return [*train, *others] if train and others else []


def _split_name(prefix: str) -> str:
    """``train`` for ``images/train``, ``split=train`` and ``train_images``."""
    name = prefix.rpartition("/")[2].lower().rpartition("=")[2]
    return re.sub(r"[-_ ]?(images?|imgs?|pictures?|photos?|data|set|split)$", "", name)


def split_note(files: Files, read: Iterable[str], kind: str) -> str | None:
    """A warning if training and test splits are read as one data set, else None."""
    names = [files.relative(path) for path in read]
    splits = splits_of(name for name in names if "/" in name or kind != "folder")
    if not splits:
        return None
    folder, train, test = folder_of(files), splits[0], splits[-1]
    if any(name.startswith(f"{train}/") for name in names):
        options = f"--data.path {folder}/{train} --data.eval-path {folder}/{test}"
    else:
        options = f"--data.path '{folder}/{train}*' --data.eval-path '{folder}/{test}*'"
    return (
        f"{', '.join(splits)} in {folder} are read as one data set; to keep them apart: {options}"
    )


def folder_of(files: Files) -> str:
    """The folder of a source, as a user would write it."""
    if not set(files.uri) & WILDCARDS and files.root not in ("", "/"):
        return files.uri.rstrip("/")
    scheme, separator, _ = files.uri.partition("://")
    return f"{scheme}://{files.root}" if separator else files.root
