"""Local folders and object stores behind one small interface, with atomic writes."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from wcl_ray.errors import StorageError, UserError
from wcl_ray.terminal import bytes_text

NOT_SEEN = (
    "{path} is not seen by the node {node}; use s3://… or gs://…, or a folder that all nodes mount"
)
WILDCARDS = frozenset("*?[")
WORKING_DIRS = "working_dir_files"  # Ray's folder of the working directories of jobs
FULL = {errno.ENOSPC, errno.EDQUOT}
PERMANENT = FULL | {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EFBIG,
}  # fmt: skip
DENIED = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")


def storage_error(path: str, error: BaseException, needed: int | None = None) -> StorageError:
    """Convert an error of the file system to a StorageError with a one-line message.

    Args:
        path: the file or folder; absolute if it is local.
        needed: bytes that should have been written.
    """
    if isinstance(error, StorageError):
        return error
    number = getattr(error, "errno", None)
    cause = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if aws := re.search(r"AWS Error (\w+) [^:]*: (.*?)( \(Request ID.*)?$", cause):
        cause = f"{aws[2]} ({aws[1]})"
    permanent = number in PERMANENT or any(code in cause for code in DENIED)
    if number not in FULL:
        return StorageError(f"{path} cannot be used: {cause}", permanent)
    space = ""
    with suppress(OSError):
        space = f", {bytes_text(shutil.disk_usage(_existing(path)).free)} are free"
        space += f" and {bytes_text(needed)} needed" if needed else ""
    return StorageError(f"{path} cannot be written: no space left{space}; free some space", True)


def _existing(path: str) -> str:
    """The path, or its nearest parent folder that exists."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


@contextmanager
def storage_errors(path: str, needed: int | None = None, reading: bool = False) -> Iterator[None]:
    """Convert any OSError inside to a StorageError, except FileNotFoundError when reading."""
    try:
        yield
    except OSError as error:
        if reading and isinstance(error, FileNotFoundError):
            raise
        raise storage_error(path, error, needed) from error


def filesystem(uri: str, endpoint: str | None = None) -> tuple[pafs.FileSystem, str]:
    """File system of a path or URI, and the path inside it.

    Args:
        uri: local path, ``file://``, ``s3://bucket/key`` or ``gs://bucket/key``.
        endpoint: URL of an S3-compatible store (``http://127.0.0.1:9000``). By default that of the
            environment variable ``AWS_ENDPOINT_URL``, else AWS.

    Raises:
        UserError: the scheme is not supported.
    """
    scheme, separator, _ = uri.partition("://")
    scheme = scheme.lower() if separator and scheme.isalnum() else ""
    if scheme in ("", "file"):
        path = uri[len("file://") :] if scheme else uri
        path = os.path.abspath(os.path.expanduser(path))
        if scheme and "%" in path and not os.path.lexists(path):  # Path.as_uri quotes
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


def resolve_output(uri: str) -> str:
    """A path to write to that outlives the job.

    A submitted job runs in a copy of its working directory that Ray deletes afterwards, so its
    relative paths are resolved against the home folder.
    """
    if "://" in uri or os.path.isabs(os.path.expanduser(uri)):
        return uri
    try:
        temporary = WORKING_DIRS in Path.cwd().parts
    except FileNotFoundError:  # already deleted by Ray
        temporary = True
    return str(Path.home() / uri) if temporary else uri


def resolve_input(uri: str) -> str:
    """A path to read: in the working directory if it exists there, else as an output of a job."""
    path = os.path.expanduser(uri)
    return uri if os.path.lexists(path) or glob.glob(path) else resolve_output(uri)


class Folder:
    """A folder on any file system whose files are written atomically.

    A relative path is resolved by :func:`resolve_output`.
    """

    def __init__(self, uri: str, endpoint: str | None = None) -> None:
        self.uri = uri = resolve_output(uri)
        self.endpoint = endpoint
        self.fs, self.path = filesystem(uri, endpoint)
        self.local = isinstance(self.fs, pafs.LocalFileSystem)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}", self.endpoint)

    def __reduce__(self) -> tuple[type[Folder], tuple[str, str | None]]:
        # the receiving process may have another working directory
        return Folder, (self.path if self.local else self.uri, self.endpoint)

    def file(self, name: str) -> str:
        """Path of a file inside the file system."""
        return f"{self.path}/{name}"

    def exists(self, name: str) -> bool:
        with storage_errors(self._location(name)):
            return bool(self.fs.get_file_info(self.file(name)).type != pafs.FileType.NotFound)

    def is_file(self, name: str) -> bool:
        with storage_errors(self._location(name)):
            return bool(self.fs.get_file_info(self.file(name)).type == pafs.FileType.File)

    def names(self) -> list[str]:
        """Sorted names of the folder's entries; empty if the folder does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        with storage_errors(self._location()):
            return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read(self, name: str) -> bytes:
        with (
            storage_errors(self._location(name), reading=True),
            self.fs.open_input_stream(self.file(name)) as stream,
        ):
            return bytes(stream.read())

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to read in parts; errors of reading it are errors of the storage, too."""
        with (
            storage_errors(self._location(name), reading=True),
            self.fs.open_input_file(self.file(name)) as file,
        ):
            yield file

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        if self.exists(name):
            with storage_errors(self._location(name), reading=True):
                self.fs.delete_file(self.file(name))

    def remove(self) -> None:
        """Delete the folder and its contents if it exists."""
        if self.names():
            with storage_errors(self._location()):
                self.fs.delete_dir(self.path)

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: readers see either the old content or the new.

        Raises:
            StorageError: the file cannot be written.
        """
        with storage_errors(self._location(name), len(content)):
            self._write(self.file(name), content)

    def _write(self, target: str, content: bytes) -> None:
        if not self.local:  # an object appears once its upload is complete
            with self.fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        parent = Path(target).parent
        parent.mkdir(parents=True, exist_ok=True)
        partial = str(parent / f".{uuid.uuid4().hex[:8]}.partial")  # the target's may be too long
        try:
            with open(partial, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, target)
        finally:
            with suppress(OSError):
                Path(partial).unlink()

    def _location(self, name: str = "") -> str:
        """The path of a file for messages."""
        path = self.path if self.local else self.uri.rstrip("/")
        return f"{path}/{name}" if name else path

    def check(self, name: str = "") -> None:
        """Write, read and delete a test file, to find unusable storage before any work is done.
        Folders created for it are removed.

        Args:
            name: the file to be written later; the name of the test file is as long.

        Raises:
            StorageError: one of these operations failed.
        """
        test_name = f".try-{uuid.uuid4().hex[:8]}".ljust(len(os.fsencode(name)), "x")
        path, created = self.file(test_name), self.missing()
        content = uuid.uuid4().bytes
        try:
            with storage_errors(self._location(name)):
                self._write(path, content)
                with self.fs.open_input_stream(path) as stream:
                    same = stream.read() == content
                self.fs.delete_file(path)
                if not same:
                    raise OSError("a test file read back differs from what was written")
        finally:
            self.prune(created)

    def missing(self) -> list[str]:
        """This folder and its parents that do not exist yet, innermost first."""
        folders, path = [], self.path
        while self.local and not os.path.lexists(path):
            folders.append(path)
            path = os.path.dirname(path)
        return folders

    def prune(self, folders: list[str]) -> None:
        """Remove local folders, innermost first, up to the first that is not empty."""
        with suppress(OSError):
            for path in folders:
                os.rmdir(path)


def check_target(uri: str, option: str, endpoint: str | None = None, suffix: str = "") -> None:
    """Check that a file can be written.

    Args:
        suffix: of the files that may be written over, such as ``.html``; "": all may.

    Raises:
        UserError: the path is a folder or another kind of file, or its parent is a file.
        StorageError: the storage refuses it.
    """
    fs, path = filesystem(resolve_output(uri), endpoint)
    parent = path.rpartition("/")[0] or "/"
    with storage_errors(uri):
        kinds = [info.type for info in fs.get_file_info([path, parent])]
    if uri.endswith("/") or kinds[0] == pafs.FileType.Directory:
        raise UserError(f"{option} {uri} is a folder; give the name of a file")
    if kinds[0] == pafs.FileType.File and not path.endswith(suffix):
        raise UserError(f"{option} {uri} is there and no {suffix} file; choose another name")
    if kinds[1] == pafs.FileType.File:
        raise UserError(f"{option} {uri}: {parent} is a file, not a folder")
    folder, name = _split(uri, endpoint)
    folder.check(name)


def write_file(uri: str, content: bytes, endpoint: str | None = None) -> None:
    """Write one file by its path or URI, atomically."""
    folder, name = _split(uri, endpoint)
    folder.write(name, content)


def _split(uri: str, endpoint: str | None) -> tuple[Folder, str]:
    """The folder and the name of a file."""
    folder, _, name = resolve_output(uri).rpartition("/")
    return Folder(folder or ("/" if uri.startswith("/") else "."), endpoint), name
