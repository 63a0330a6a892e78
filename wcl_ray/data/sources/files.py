"""Reads image files that a table names by path or URI, in threads; errors become faults."""

from __future__ import annotations

import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs as pafs

from wcl_ray.data.sources.listing import Files
from wcl_ray.storage import filesystem

FILES_AT_ONCE = 32  # image files held in memory at a time


def read_files(paths: list[str | None], files: Files, base: str) -> tuple[pa.Array, pa.Array]:
    """Contents and faults of image files given by path or URI.

    Args:
        base: folder that relative paths start from; empty if paths are those of the file system.
    """
    source_fs = files.fs

    def read(path: str | None) -> tuple[bytes | None, str | None]:
        if not path:
            return None, "no path"
        try:
            if "://" in path or path.startswith("/"):
                fs, inside = filesystem(path, files.endpoint)
            else:
                fs, inside = source_fs, f"{base}/{path}" if base else path
            with fs.open_input_stream(_spelling_on_disk(fs, inside)) as stream:
                return stream.read(), None
        except FileNotFoundError:
            return None, f"file not found: {path}"
        except Exception as error:  # file systems raise many types
            return None, f"{type(error).__name__}: {error}"[:200]

    results = list(_readers().map(read, paths))
    contents = pa.array([content for content, _ in results], pa.large_binary())
    return contents, pa.array([fault for _, fault in results], pa.string())


def _spelling_on_disk(fs: pafs.FileSystem, path: str) -> str:
    """The path as it is spelled on disk: tables written on other systems compose accents
    differently or separate folders by ``\\``.

    Raises:
        FileNotFoundError, OSError: no such file, or not a regular file (reading may never end).
    """
    if not isinstance(fs, pafs.LocalFileSystem):
        return path
    slashes = (path, path.replace("\\", "/"))
    spellings = [unicodedata.normalize(form, p) for form in ("NFC", "NFD") for p in slashes]
    existing = next((p for p in (path, *spellings) if os.path.exists(p)), None)
    if existing is None:
        raise FileNotFoundError(path)
    if not os.path.isfile(existing):
        raise OSError("not a regular file")
    return existing


@lru_cache(maxsize=1)
def _readers() -> ThreadPoolExecutor:
    """Threads that read image files, one pool per process."""
    return ThreadPoolExecutor(8, thread_name_prefix="open")
