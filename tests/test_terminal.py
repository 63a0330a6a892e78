"""What jobs print: on a terminal, in a pipe, and through Python's logging."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from wcl_ray.terminal import Live, say, table, warn

STORY = """
from wcl_ray.terminal import Live, say, warn
live = Live("train", 0)
for step in range(3):
    live.show(f"[red]loss[/] {step}", step / 2)
    if step == 1:
        warn("an image cannot be read")
live.close()
say("done", "all")
"""


def on_a_terminal(code: str) -> list[str]:
    """Lines that a program leaves on a terminal of 60 columns, without their colours."""
    main, side = pty.openpty()
    env = os.environ | {"COLUMNS": "60", "TERM": "xterm", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=side, env=env)
    os.close(side)
    printed = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        printed += part
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed.decode()).replace("\r\n", "\n")
    return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


def test_live_line_on_a_terminal() -> None:
    """Other lines go above it, and its last state is left standing."""
    lines = [line for line in on_a_terminal(STORY) if line]
    assert "warning: an image cannot be read" in lines
    assert lines[-1] == "done      all"
    assert re.fullmatch(r"train \S+ \[red\]loss\[/\] 2", lines[-2])


def test_live_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    live = Live("train", 0)
    live.show("[red]loss[/] 1", 0.5)
    live.close()
    live = Live("train", 1000)
    live.show("loss 2")  # the first is printed at once
    live.show("loss 3")
    live.show("loss 4")
    live.close()  # and the last is left
    printed = capsys.readouterr().out
    assert printed == "train  [red]loss[/] 1\ntrain  loss 2\ntrain  loss 4\n"


def test_lines_are_pythons_logging(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("wcl_ray")
    say("run", "one")
    try:
        log.setLevel(logging.WARNING)
        say("run", "two")
        warn("three")
    finally:
        log.setLevel(logging.INFO)
    assert capsys.readouterr().out == "run       one\nwarning: three\n"


def test_table_of_wide_letters_and_markup() -> None:
    text = table(["name", "K"], [["[b]甲虫", "10"], ["a", "1,000"]])
    assert text.splitlines() == [
        "name          K",
        "---------------",
        "[b]甲虫      10",
        "a         1,000",
    ]
