"""The folder adapters/ installs as grasp_plugin.adapters, whole, and nowhere else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ((ROOT / "grasp_plugin", "grasp_plugin"), (ROOT / "adapters", "grasp_plugin.adapters"))
pytestmark = pytest.mark.skipif(not (ROOT / "adapters").is_dir(), reason="needs a checkout")


def test_every_package_is_listed() -> None:
    found = set()
    for folder, name in SOURCES:
        for module in folder.rglob("*.py"):
            parts = module.parent.relative_to(folder).parts
            if name == "grasp_plugin" and parts[:1] == ("adapters",):
                continue  # the link
            assert (module.parent / "__init__.py").exists(), f"{module.parent} has no __init__.py"
            found.add(".".join((name, *parts)))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(found) == sorted(settings["tool"]["setuptools"]["packages"])


def test_link_is_a_link() -> None:
    link = ROOT / "grasp_plugin" / "adapters"
    if link.is_dir():  # lost, or a text file on Windows: the build still works
        assert link.is_symlink()
        assert link.resolve() == ROOT / "adapters"


def test_one_module_object() -> None:
    import grasp_plugin.adapters as adapters

    assert Path(adapters.__file__ or "").resolve() == ROOT / "adapters" / "__init__.py"


def test_wrong_name_is_refused() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import adapters"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "grasp_plugin.adapters" in run.stderr


def test_licence_is_the_one_declared() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["license"] == "BSD-3-Clause"
    assert "BSD 3-Clause License" in (ROOT / "LICENSE").read_text()
    assert "license: BSD-3-Clause" in (ROOT / "CITATION.cff").read_text()


def test_constraints_pin_every_dependency_and_name_no_place() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = settings["optional-dependencies"]
    wanted = [*settings["dependencies"], *(line for name in extras for line in extras[name])]
    text = (ROOT / "constraints.txt").read_text()
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in text.splitlines() if "==" in line
    }
    names = {re.split(r"[=<>;\s]", line)[0].lower() for line in wanted}
    assert names - {"neurobench"} <= pinned
    assert not re.search(r"https?:|file:|@|/", text)
