"""What is handed out: the wheel and the sdist (`make test-wheel` installs them), the workflows."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import gradsift

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/gradsift"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_what_the_package_does(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = message_from_bytes(wheel.read(about))
        for name in ("LICENSE", "src/gradsift/reporting/assets/LICENCES.txt"):
            assert about.replace("METADATA", f"licenses/{name}") in wheel.namelist()
    files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    # Of those that develop it alone: what makes the page's libraries anew.
    files = [path for path in files if path.suffix != ".pyc" and path.name != "renew.sh"]
    assert names == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert {"gradsift/py.typed", "gradsift/trainer_configs/keys.yaml"} <= names
    assert metadata["Version"] == gradsift.__version__
    assert metadata["License-Expression"] == "Apache-2.0 AND BSD-3-Clause AND MIT"
    # On PyPI a relative link leads nowhere.
    readme = metadata.get_payload()
    assert len(re.findall(r"\]\((?=https:)", readme)) > 10
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", readme)


def test_the_sdist_holds_what_the_tests_need(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    needed = ["tests/tiny.py", "experiments/intervals.py", "docs/cli.md", "README.md", "Makefile"]
    assert not {*needed, "constraints.txt", "pyproject.toml"} - names
    assert not any(name.startswith((".venv", "runs/", "shared")) for name in names)


def test_a_build_of_the_site_can_fail():
    """With --quiet mkdocs counts no warnings, and --strict has none to stop at."""
    (line,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert line.split() == ["mkdocs", "build", "--strict"]


def test_addresses_stand_for_one_place():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    urls = about["project"]["urls"]
    assert site["extra"]["source"] == urls["Source"]
    assert site["site_url"] == urls["Documentation"]
    raw = urls["Source"].replace("//github.com", "//raw.githubusercontent.com")
    hook = about["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    pictures, links = (one["replacement"] for one in hook["substitutions"])
    assert (pictures, links) == (rf"\1{raw}/main/", f"{urls['Source']}/blob/main/")


@pytest.mark.parametrize("file", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda f: f.stem)
def test_workflows_get_no_more_than_they_need(file):
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}
    # PyPI trusts one job, and it builds nothing.
    trusted = {name for name, job in workflow["jobs"].items() if "id-token" in job["permissions"]}
    assert trusted <= {"pypi", "site"}
    for name, job in workflow["jobs"].items():
        assert name not in trusted or not any("run" in step for step in job["steps"])
        for step in job["steps"]:
            # A tag can be moved, a commit cannot.
            assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + "0" * 40)), step
        called = re.findall(r"\bmake ([a-z -]+)", "\n".join(s.get("run", "") for s in job["steps"]))
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in " ".join(called).split():
            assert f"\n{target}:" in makefile, target
