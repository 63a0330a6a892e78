"""What the documentation says about options, files and links."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import wcl_ray
from wcl_ray.cli import parse
from wcl_ray.config import Config

ROOT = next(p for p in Path(__file__).parents if (p / "pyproject.toml").exists())


def test_options_reference_is_current() -> None:
    command = [sys.executable, str(ROOT / "docs/make_options.py")]
    written = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    current = (ROOT / "docs/options.md").read_text() == written
    assert current, "run: python docs/make_options.py > docs/options.md"


@pytest.mark.parametrize("name", ["attributes", "hierarchy", "kmeans"])
def test_examples_are_read(name: str) -> None:
    config: Config = parse(["--config", str(ROOT / f"examples/{name}.yaml")])
    assert config.clusters.kind == name == config.name


def test_rayjob_manifest() -> None:
    job = yaml.safe_load((ROOT / "examples/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    config: Config = parse(words[2:])
    assert (ROOT / words[1]).exists()
    assert config.start_or_resume
    groups = {g["groupName"]: g for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.scale.range() == (1, groups["gpu"]["maxReplicas"])
    for group in groups.values():
        assert group["template"]["spec"]["containers"][0]["name"] == "ray"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_examples_in_docstrings() -> None:
    tried = 0
    for module in pkgutil.walk_packages(wcl_ray.__path__, "wcl_ray."):
        result = doctest.testmod(importlib.import_module(module.name))
        assert not result.failed, module.name
        tried += result.attempted
    assert tried >= 10
