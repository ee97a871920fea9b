"""requirements.lock: every package by its hash, within the bounds, and it installs."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = REPOSITORY / "requirements.lock"
LINE = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>\S+) --hash=sha256:[0-9a-f]{64}")
LINES = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
PINNED = {
    canonicalize_name(match["name"]): match["version"]
    for match in map(LINE.fullmatch, LINES)
    if match
}


def test_every_package_has_one_version_and_its_hash():
    assert len(PINNED) == len(LINES) > 50


def test_it_names_no_registry():
    assert not re.search(r"https?:|file:|/opt|/tmp|index-url|find-links|@", LOCK.read_text())


def test_it_is_within_the_bounds_of_the_project():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    extras = project["project"]["optional-dependencies"]
    (within,) = [Requirement(line).extras for line in extras["dev"] if "recurrent-lmkit" in line]
    for extra in ("dev", *within):
        wanted += extras[extra]
    found = 0
    for requirement in map(Requirement, wanted):
        if requirement.name == "recurrent-lmkit":
            continue
        version = PINNED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, locked {version}"
        found += 1
    assert found > 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fresh_environment_is_installed_from_it(tmp_path):
    """With the commands of its head; in another environment nothing is at hand."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (sys.platform, os.uname().machine, python) != ("linux", "x86_64", "3.11"):
        pytest.skip("the lock is that of Linux x86_64 and CPython 3.11")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment["PATH"] = f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", REPOSITORY, source], check=True)
    (source / LOCK.name).write_bytes(LOCK.read_bytes())
    head = re.findall(r"^#   (.+)$", LOCK.read_text(), re.MULTILINE)
    assert len(head) == 4

    def run(command: str, cwd: Path) -> str:
        done = subprocess.run(
            ["bash", "-ec", command], cwd=cwd, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in head:
        run(command, source)
    listed = dict(
        line.split("==")
        for line in run("pip list --format=freeze --exclude pip", source).splitlines()
    )
    del listed["recurrent-lmkit"]
    assert {canonicalize_name(name): version for name, version in listed.items()} == PINNED
    assert run("lmkit --version", tmp_path).strip() == "0.1.0"
    assert "experiment=" in run("lmkit list", tmp_path)
    run("python -c 'import lmkit.training'", tmp_path)
    wrong = re.sub(r"(rich==\S+ --hash=sha256:).{8}", r"\g<1>00000000", LOCK.read_text())
    (source / "wrong.lock").write_text("".join(re.findall(r"^rich==.*\n", wrong, re.MULTILINE)))
    with pytest.raises(AssertionError, match="DO NOT MATCH THE HASHES"):
        run("pip download --no-deps --no-cache-dir --require-hashes -r wrong.lock", source)
