"""What a data path holds beside what is read, in words: silence would be taken for "all of it"."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from wcl_ray.data.sources.listing import METADATA_FILES, Files, is_image, suffix_of
from wcl_ray.storage import WILDCARDS

TRAIN = ("train", "training")
OTHERS = ("val", "valid", "validation", "dev", "test", "testing", "eval")
# formats of images that neither Pillow nor torchvision reads, or only in some builds
PICTURES: tuple[str, ...] = (
    "heic",
    "heif",
    "avif",
    "jxl",
    "jp2",
    "j2k",
    "svg",
    "psd",
    "ai",
    "eps",
    "pdf",
    "tga",
)
PICTURES += ("ico", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "raw", "dcm")
TABLES = ("csv", "tsv", "json", "jsonl", "xlsx", "xls", "ods", "parquet", "pq", "parq", "feather")
PACKED = ("zip", "gz", "tgz", "zst", "bz2", "xz", "rar", "7z", "arrow")
MANY = 5


def left_out(
    files: Files, read: Files, kind: str, named: Iterable[str] | None = None
) -> str | None:
    """One line on the files below a path that are not read, or None.

    Args:
        read: files that are read.
        kind: format of the source.
        named: paths of the images that metadata tables name.
    """
    wanted = frozenset[str]() if kind == "folder" else frozenset(read.paths)
    names = None if named is None else set(map(_plain, named))
    parts: list[str] = []
    tables, others, pictures, unnamed = [], Counter[str](), Counter[str](), 0
    for path in files.paths:
        suffix, base = suffix_of(path), path.rpartition("/")[2]
        if path in wanted or (kind == "folder" and base in METADATA_FILES):
            continue
        if is_image(path) and kind == "folder":
            unnamed += names is not None and _plain(path) not in names
        elif suffix in PICTURES:
            pictures[suffix] += 1
        elif suffix in TABLES and (kind == "folder" or suffix != "json"):
            tables.append(files.relative(path))
        else:
            others[suffix] += 1
    if pictures:
        parts.append(f"{_counts(pictures)} (no format that is read; convert to JPEG or PNG)")
    if unnamed:
        parts.append(f"{unnamed} images that the metadata table does not name")
    if tables:
        how = "metadata is read from metadata.csv, .jsonl or .parquet with a column file_name"
        if kind != "folder":
            how = f"this is read as {kind}; see --data.format"
        parts.append(f"{_some(tables)} ({how})")
    if others:
        packed = " (unpack it)" if set(others) & set(PACKED) else ""
        parts.append(f"{_counts(others)}{packed}")
    inside = {files.relative(path).split("/")[0] for path in names or ()}
    folders = [name for name in files.folders if name not in inside]
    if folders:
        parts.append(
            f"the sub-folders {_some(folders)} (a glob takes them: {folder_of(files)}/**/*)"
        )
    return f"not read in {files.uri}: {'; '.join(parts)}" if parts else None


def _plain(path: str) -> str:
    """A path in one spelling, see :mod:`wcl_ray.data.sources.files`."""
    return posixpath.normpath(unicodedata.normalize("NFC", path.replace("\\", "/")))


def _counts(suffixes: Counter[str]) -> str:
    most = suffixes.most_common()
    return _some([f"{n} .{suffix}" if suffix else f"{n} without a suffix" for suffix, n in most])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def splits_of(names: Iterable[str]) -> list[str]:
    """Parts of a data set (train, val, test) that folders or file names are called after.

    Looks at the first folder below those that all share, and at the beginnings of names. The
    training part comes first; none unless there are two parts, training among them.
    """
    paths = list(names)
    above = posixpath.commonpath([path.rpartition("/")[0] for path in paths]) if paths else ""
    start = f"{above}/" if above else ""
    first = Counter(
        start + re.split(r"[/]|[-_.]\d|[-_.]of|\.", name.removeprefix(start), maxsplit=1)[0]
        for name in paths
    )
    train = [name for name in first if _part(name) in TRAIN]
    others = sorted(name for name in first if _part(name) in OTHERS)
    return [*train, *others] if train and others else []


def _part(name: str) -> str:
    """``train`` for ``images/train``, ``split=train`` and ``train_images``."""
    last = name.rpartition("/")[2].lower().rpartition("=")[2]
    return re.sub(r"[-_ ]?(images?|imgs?|pictures?|photos?|data|set|split)$", "", last)


def split_note(files: Files, read: Iterable[str], kind: str) -> str | None:
    """A warning where files of the training and the test part are read as one set, or None."""
    names = [files.relative(path) for path in read]
    splits = splits_of(name for name in names if "/" in name or kind != "folder")
    if not splits:
        return None
    here, train, test = folder_of(files), splits[0], splits[-1]
    if any(name.startswith(f"{train}/") for name in names):
        how = f"--data.path {here}/{train} --data.eval-path {here}/{test}"
    else:
        how = f"--data.path '{here}/{train}*' --data.eval-path '{here}/{test}*'"
    return f"{', '.join(splits)} in {here} are read as one set of images; to keep them apart: {how}"


def folder_of(files: Files) -> str:
    """The folder of a source as a user would write it."""
    if not set(files.uri) & WILDCARDS and files.root not in ("", "/"):
        return files.uri.rstrip("/")
    scheme, separator, _ = files.uri.partition("://")
    return f"{scheme}://{files.root}" if separator else files.root
