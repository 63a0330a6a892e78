"""Local folders and object stores behind one small interface, with atomic writes."""

from __future__ import annotations

import glob
import os
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from wcl_ray.errors import UserError

WILDCARDS = frozenset("*?[")
WORKING_DIRS = "working_dir_files"  # Ray's folder of the working directories of jobs


def filesystem(uri: str, endpoint: str | None = None) -> tuple[pafs.FileSystem, str]:
    """File system of a path or URI, and the path inside it.

    Args:
        uri: local path, ``file://``, ``s3://bucket/key`` or ``gs://bucket/key``.
        endpoint: URL of an S3-compatible store (``http://127.0.0.1:9000``); AWS when None. The
            environment variable ``AWS_ENDPOINT_URL`` is honoured too.

    Raises:
        UserError: a scheme that is not supported.
    """
    scheme, separator, _ = uri.partition("://")
    scheme = scheme.lower() if separator and scheme.isalnum() else ""
    if scheme in ("", "file"):
        path = uri[len("file://") :] if scheme else uri
        path = os.path.abspath(os.path.expanduser(path))
        if scheme and "%" in path and not os.path.lexists(path):  # as pathlib writes URIs
            path = unquote(path)
        return pafs.LocalFileSystem(), path
    if scheme == "s3":
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL")
        options: dict[str, object] = {}
        if endpoint:
            parts = urlsplit(endpoint)
            if not parts.netloc:
                raise UserError(f"data.endpoint {endpoint!r} is not a URL such as http://host:9000")
            options = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
            options["region"] = os.environ.get("AWS_REGION", "us-east-1")
            options["allow_bucket_creation"] = False
        return pafs.S3FileSystem(**options), uri[len("s3://") :].rstrip("/")
    if scheme in ("gs", "gcs"):
        return pafs.GcsFileSystem(), uri.split("://", 1)[1].rstrip("/")
    raise UserError(f"{uri!r}: the scheme {scheme}:// is not supported; use a path, s3:// or gs://")


def lasting(uri: str) -> str:
    """A path that outlives the job.

    A job that was submitted runs in a copy of its working directory, which Ray deletes with all
    that was written there; relative paths are taken from the home folder then.
    """
    if "://" in uri or os.path.isabs(os.path.expanduser(uri)):
        return uri
    try:
        temporary = WORKING_DIRS in Path.cwd().parts
    except FileNotFoundError:  # Ray has deleted it already
        temporary = True
    return str(Path.home() / uri) if temporary else uri


def found(uri: str) -> str:
    """A path to read: a relative one of a job that is not in its working directory lies where
    the outputs of jobs do."""
    path = os.path.expanduser(uri)
    return uri if os.path.lexists(path) or glob.glob(path) else lasting(uri)


class Folder:
    """A folder on any file system whose files appear whole or not at all.

    Relative paths of submitted jobs lie in the home folder, see :func:`lasting`.
    """

    def __init__(self, uri: str, endpoint: str | None = None) -> None:
        self.uri = uri = lasting(uri)
        self.endpoint = endpoint
        self.fs, self.path = filesystem(uri, endpoint)
        self.local = isinstance(self.fs, pafs.LocalFileSystem)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}", self.endpoint)

    def __reduce__(self) -> tuple[type[Folder], tuple[str, str | None]]:
        # another process may have another working directory
        return Folder, (self.path if self.local else self.uri, self.endpoint)

    def file(self, name: str) -> str:
        """Path of a file inside the file system."""
        return f"{self.path}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self.fs.get_file_info(self.file(name)).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names directly below this folder; none when there is no such folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read(self, name: str) -> bytes:
        with self.fs.open_input_stream(self.file(name)) as stream:
            return bytes(stream.read())

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens when there is none."""
        if self.exists(name):
            self.fs.delete_file(self.file(name))

    def remove(self) -> None:
        """Delete the folder with all it holds; nothing happens when there is none."""
        if self.names():
            self.fs.delete_dir(self.path)

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: readers see the old content or the new, never a part."""
        target = self.file(name)
        if not self.local:  # an object appears when its upload is complete
            with self.fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        partial = f"{target}.{uuid.uuid4().hex[:8]}.partial"
        try:
            with open(partial, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, target)
        finally:
            Path(partial).unlink(missing_ok=True)


def check_target(uri: str, option: str, endpoint: str | None = None) -> None:
    """Raise a UserError when no file can be written there: it is a folder, or inside a file."""
    fs, path = filesystem(lasting(uri), endpoint)
    parent = path.rpartition("/")[0] or "/"
    if uri.endswith("/") or fs.get_file_info(path).type == pafs.FileType.Directory:
        raise UserError(f"{option} {uri} is a folder; give the name of a file")
    if fs.get_file_info(parent).type == pafs.FileType.File:
        raise UserError(f"{option} {uri}: {parent} is a file, not a folder")


def write_file(uri: str, content: bytes, endpoint: str | None = None) -> None:
    """Write one file by its path or URI, atomically."""
    folder, _, name = lasting(uri).rpartition("/")
    Folder(folder or ("/" if uri.startswith("/") else "."), endpoint).write(name, content)
