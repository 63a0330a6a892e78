"""A table of what people bring: a name, what is made, and what must come out.

Add a row to the list of a module: a function that makes something in a folder and returns the
options of the data (or the folder), and what must come out of it. An input ends in rows or in one
line that names the file, never in a traceback; :mod:`test_inputs` runs them all.
"""

from __future__ import annotations

from .expected import Input, Read
from .folders import FOLDERS
from .images import IMAGES
from .parquet import PARQUET
from .shards import SHARDS
from .tables import TABLES

__all__ = ["INPUTS", "Input", "Read"]

INPUTS = [*IMAGES, *TABLES, *PARQUET, *SHARDS, *FOLDERS]
