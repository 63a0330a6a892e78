"""The clusters of benchmarks/study.py have the information that it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.study import Point, Study, draw
from wcl_ray.cli import parse
from wcl_ray.clusters.quality import measure

IMAGES = 60_000


@pytest.mark.parametrize("groups", [1, 2, 6, 12])
@pytest.mark.parametrize("parts", [1, 4, 50, None])
def test_closed_form_is_the_measured_information(groups: int, parts: int | None) -> None:
    groups = groups if parts else 12
    species = np.random.default_rng(1).integers(0, 12, IMAGES)
    point = Point(groups, parts)
    clusters = point.clusters(species, seed=0)
    quality = measure(point.name, clusters, species, 256, 2)
    assert (quality.i_zt, quality.h_z_t) == pytest.approx(point.bits(IMAGES), abs=0.005)
    assert quality.clusters == (groups * parts if parts else IMAGES)


def test_groups_and_parts_are_drawn_by_the_seed() -> None:
    species = np.arange(IMAGES) % 12
    first, again, other = (Point(6, 4).clusters(species, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    partners = [{tuple(np.unique(species[c // 4 == g])) for g in range(6)} for c in (first, other)]
    assert partners[0] != partners[1]


def test_axes_share_a_point() -> None:
    study: Study = parse(["--name", "study", "--data.label", "label"], Study)
    points = study.points
    assert len(points) == len(set(points)) == 9
    shared = [p for p in points if p.parts == 4 and p.groups == 12]
    assert [p.bits(3000) for p in shared] == [pytest.approx((3.585, 2), abs=1e-3)]
    names = {study.of(p, seed, None).name for p in points for seed in study.seeds}
    assert len(names) == 27


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--groups", "5"], "groups 5 does not divide"),
        (["--parts", "126"], "parts 126 is not in 1 to 125"),
        (["--clusters.kind", "label"], "makes its own clusters"),
    ],
)
def test_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--data.label", "label", *words], Study)
    assert message in " ".join(capsys.readouterr().err.split())


def test_picture_depends_on_the_figures_only(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    summary = {
        p.name: dict(zip(("groups", "parts", "i_zt", "h_z_t"), (*p, *p.bits(3000)), strict=True))
        | {"knn": 0.5, "knn_seeds": [0.4, 0.6], "probe": 0.6, "probe_seeds": [0.5, 0.7]}
        for p in (Point(6, 4), Point(12, 4), Point(12, 1), Point(12, None))
    }
    files = [tmp_path / name for name in ("first.svg", "again.svg")]
    for file in files:
        draw(summary, str(file))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"<svg" in files[0].read_bytes()
