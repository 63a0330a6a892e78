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

import pyarrow.fs as pafs

from wcl_ray.errors import StorageError, UserError
from wcl_ray.terminal import bytes_text

NOT_SEEN = (
    "{where} is not seen by the node {node}; use s3://… or gs://…, or a folder that all mount"
)
WILDCARDS = frozenset("*?[")
WORKING_DIRS = "working_dir_files"  # Ray's folder of the working directories of jobs
FULL = {errno.ENOSPC, errno.EDQUOT}
LASTING = FULL | {
    errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EFBIG,
}  # fmt: skip
DENIED = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")


def storage_error(path: str, error: BaseException, needed: int | None = None) -> StorageError:
    """What the storage refused, as one line.

    Args:
        path: of the file or folder, absolute where it is local.
        needed: bytes that were to be written.
    """
    if isinstance(error, StorageError):
        return error
    number = getattr(error, "errno", None)
    cause = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if told_by_aws := re.search(r"AWS Error (\w+) [^:]*: (.*?)( \(Request ID.*)?$", cause):
        cause = f"{told_by_aws[2]} ({told_by_aws[1]})"
    lasting = number in LASTING or any(word in cause for word in DENIED)
    if number not in FULL:
        return StorageError(f"{path} cannot be used: {cause}", lasting)
    room = ""
    with suppress(OSError):
        room = f", {bytes_text(shutil.disk_usage(_existing(path)).free)} are free"
        room += f" and {bytes_text(needed)} needed" if needed else ""
    return StorageError(f"{path} cannot be written: no space left{room}; make room there", True)


def _existing(path: str) -> str:
    """The path, or the nearest folder above it that is there."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


@contextmanager
def told(path: str, needed: int | None = None, reading: bool = False) -> Iterator[None]:
    """Make a StorageError of any OSError inside, but for a missing file where one is read."""
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
        with told(self._shown(name)):
            return bool(self.fs.get_file_info(self.file(name)).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names directly below this folder; none when there is no such folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        with told(self._shown()):
            return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read(self, name: str) -> bytes:
        with (
            told(self._shown(name), reading=True),
            self.fs.open_input_stream(self.file(name)) as stream,
        ):
            return bytes(stream.read())

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens when there is none."""
        if self.exists(name):
            with told(self._shown(name), reading=True):
                self.fs.delete_file(self.file(name))

    def remove(self) -> None:
        """Delete the folder with all it holds; nothing happens when there is none."""
        if self.names():
            with told(self._shown()):
                self.fs.delete_dir(self.path)

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: readers see the old content or the new, never a part.

        Raises:
            StorageError: it cannot be written.
        """
        with told(self._shown(name), len(content)):
            self._write(self.file(name), content)

    def _write(self, target: str, content: bytes) -> None:
        if not self.local:  # an object appears when its upload is complete
            with self.fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        parent = Path(target).parent
        parent.mkdir(parents=True, exist_ok=True)
        partial = str(parent / f".{uuid.uuid4().hex[:8]}.partial")  # no longer than a name may be
        try:
            with open(partial, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, target)
        finally:
            with suppress(OSError):
                Path(partial).unlink()

    def _shown(self, name: str = "") -> str:
        """The path of a file as messages name it."""
        path = self.path if self.local else self.uri.rstrip("/")
        return f"{path}/{name}" if name else path

    def check(self, name: str = "") -> None:
        """Write, read, rename and delete a file, so that storage that is of no use is found before
        any work; folders that are made for it are removed again.

        Args:
            name: of the file that will be written; the one that is tried is as long.

        Raises:
            StorageError: one of them failed.
        """
        tried = f".try-{uuid.uuid4().hex[:8]}".ljust(len(os.fsencode(name)), "x")
        path, made = self.file(tried), self.missing()
        content = uuid.uuid4().bytes
        try:
            with told(self._shown(name)):
                self._write(path, content)  # renames where it is local
                with self.fs.open_input_stream(path) as stream:
                    same = stream.read() == content
                self.fs.delete_file(path)
                if not same:
                    raise OSError("what is read is not what was written")
        finally:
            self.prune(made)

    def missing(self) -> list[str]:
        """This folder and those above it that are not there yet, the innermost first."""
        found, path = [], self.path
        while self.local and not os.path.lexists(path):
            found.append(path)
            path = os.path.dirname(path)
        return found

    def prune(self, folders: list[str]) -> None:
        """Remove local folders that are empty."""
        with suppress(OSError):  # there is something in it
            for path in folders:
                os.rmdir(path)


def check_target(uri: str, option: str, endpoint: str | None = None) -> None:
    """Find out whether a file can be written there.

    Raises:
        UserError: it is a folder, or inside a file. StorageError: the storage refuses it.
    """
    fs, path = filesystem(lasting(uri), endpoint)
    parent = path.rpartition("/")[0] or "/"
    with told(uri):
        kinds = [info.type for info in fs.get_file_info([path, parent])]
    if uri.endswith("/") or kinds[0] == pafs.FileType.Directory:
        raise UserError(f"{option} {uri} is a folder; give the name of a file")
    if kinds[1] == pafs.FileType.File:
        raise UserError(f"{option} {uri}: {parent} is a file, not a folder")
    folder, name = _split(uri, endpoint)
    folder.check(name)


def write_file(uri: str, content: bytes, endpoint: str | None = None) -> None:
    """Write one file by its path or URI, atomically."""
    folder, name = _split(uri, endpoint)
    folder.write(name, content)


def _split(uri: str, endpoint: str | None) -> tuple[Folder, str]:
    """Folder and name of a file."""
    folder, _, name = lasting(uri).rpartition("/")
    return Folder(folder or ("/" if uri.startswith("/") else "."), endpoint), name
