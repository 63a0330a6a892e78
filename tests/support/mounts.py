"""A small file system of one's own, to be filled."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system in memory with these options; again with others: the same one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = False

    def call(options: str) -> Path:
        nonlocal mounted
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if mounted:
            words = ["mount", "-o", f"remount,{options}", str(place)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        mounted = True
        return place

    yield call
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)
