"""A run as notebooks and programs use it: ``run = wcl_ray.pretrain(Config(...))``."""

from __future__ import annotations

import functools
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wcl_ray.config import Config
from wcl_ray.report.read import read_results
from wcl_ray.report.run import write_page
from wcl_ray.runs import pretrain as driver
from wcl_ray.runs.folder import PAGE
from wcl_ray.runs.load import ImageEncoder, load_encoder
from wcl_ray.storage import Folder, resolve_input

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("clusters", "knn", "probe", "rank_me", "alignment", "uniformity", "positives")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: of the run, a path or an s3:// URI.
        endpoint: URL of the S3 endpoint, for stores other than AWS.
    """

    folder: str
    endpoint: str | None = None

    @property
    def _files(self) -> Folder:
        return Folder(resolve_input(self.folder).rstrip("/"), self.endpoint)

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``.

        Raises:
            UserError: not a run folder, or a run that is not finished.
        """
        return read_results(self._files)

    def table(self) -> pd.DataFrame:
        """The main figures of the evaluation: one row for the run and one for its SimCLR baseline;
        ``results`` has all."""
        import pandas as pd

        table = pd.DataFrame.from_dict(self.results["variants"], orient="index")
        return table[[name for name in COLUMNS if name in table.columns]]

    def encoder(self) -> ImageEncoder:
        """The trained backbone, see :func:`wcl_ray.load_encoder`."""
        return load_encoder(self.folder, self.endpoint)

    def report(self) -> Page:
        """The page of the run, which notebooks show; it is written if it is missing."""
        if not self._files.exists(PAGE):
            write_page(self._files)
        return Page(self._files.read(PAGE).decode(), f"{self._files.uri}/{PAGE}")

    def _repr_html_(self) -> str:
        return f"{html.escape(self.folder)}{self.table().to_html()}"


@dataclass(frozen=True, repr=False)
class Page:
    """A page that notebooks show in a frame of their own.

    Attributes:
        content: HTML.
        path: of the file, a path or a URI.
    """

    content: str
    path: str

    def __repr__(self) -> str:
        return f"Page({self.path!r})"

    def _repr_html_(self) -> str:
        frame = 'width="100%" height="700" style="border: 0"'
        return f'<iframe srcdoc="{html.escape(self.content)}" {frame}></iframe>'


def pretrain(config: Config) -> Run:
    """Start, continue or look up a pretraining run, as ``jobs/pretrain.py`` does; prints its
    progress and writes its page.

    Raises:
        UserError: wrong input or options, before any training.
    """
    return Run(driver.pretrain(config, write_page)["run"], config.data.endpoint)
