"""Image files that a table names by path or URI, opened in threads; what fails is a fault."""

from __future__ import annotations

import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs as pafs

from wcl_ray.data.sources.listing import Files
from wcl_ray.storage import filesystem

OPEN = 32  # image files that are in memory at a time


def read_files(paths: list[str | None], files: Files, base: str) -> tuple[pa.Array, pa.Array]:
    """Content and fault of image files given by path or URI, relative ones to ``base``; an empty
    base means that paths are those of the file system."""
    own = files.fs

    def one(path: str | None) -> tuple[bytes | None, str | None]:
        if not path:
            return None, "no path"
        try:
            if "://" in path or path.startswith("/"):
                fs, inside = filesystem(path, files.endpoint)
            else:
                fs, inside = own, f"{base}/{path}" if base else path
            inside = _stored(fs, inside)
            with fs.open_input_stream(inside) as stream:
                return stream.read(), None
        except FileNotFoundError:
            return None, f"file not found: {path}"
        except Exception as error:  # of many types, by the file system
            return None, f"{type(error).__name__}: {error}"[:200]

    found = list(_readers().map(one, paths))
    content = pa.array([c for c, _ in found], pa.large_binary())
    return content, pa.array([f for _, f in found], pa.string())


def _stored(fs: pafs.FileSystem, path: str) -> str:
    """A path as the disk has it: tables of other systems spell accents otherwise, and write
    ``\\`` between folders.

    Raises:
        FileNotFoundError, OSError: no such file, or something whose reading might never end.
    """
    if not isinstance(fs, pafs.LocalFileSystem):
        return path
    spellings = (path, path.replace("\\", "/"))
    every = [unicodedata.normalize(form, p) for form in ("NFC", "NFD") for p in spellings]
    there = next((p for p in (path, *every) if os.path.exists(p)), None)
    if there is None:
        raise FileNotFoundError(path)
    if not os.path.isfile(there):
        raise OSError("no regular file")
    return there


@lru_cache(maxsize=1)
def _readers() -> ThreadPoolExecutor:
    """Threads that open image files, one set a process."""
    return ThreadPoolExecutor(8, thread_name_prefix="open")
