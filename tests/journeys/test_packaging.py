"""The wheel, installed in an environment of its own, away from the checkout."""

import os
import re
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `lmkit` of the wheel; what it depends on comes from the environment of the tests."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    run("git", "clone", "-q", REPOSITORY, source, cwd=place)
    run(sys.executable, "-m", "build", "-q", "--wheel", "--outdir", place, source, cwd=place)
    (wheel,) = place.glob("*.whl")
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=place)
    (packages,) = (place / "venv").glob("lib/python*/site-packages")
    # Not the editable checkout: its finder is no path, and its .pth is not read from here.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return place / "venv" / "bin" / "lmkit"


def test_the_wheel_brings_its_config_groups_and_pages(installed: Path, tmp_path: Path) -> None:
    python = installed.with_name("python")
    names = "import lmkit; from lmkit.config.groups import CONF; print(CONF, *lmkit.__path__)"
    conf, package = run(python, "-c", names, cwd=tmp_path).split()
    assert Path(conf) == Path(package) / "conf"
    assert REPOSITORY not in Path(package).parents
    shipped = {p.relative_to(conf).as_posix() for p in Path(conf).rglob("*.yaml")}
    assert shipped == {
        p.relative_to(REPOSITORY / "conf").as_posix() for p in (REPOSITORY / "conf").rglob("*.yaml")
    }
    for pattern in ("**/*.py", "pages/*.html", "kernels/native/*", "py.typed"):
        here = {p.relative_to(REPOSITORY / "lmkit") for p in (REPOSITORY / "lmkit").glob(pattern)}
        assert {p.relative_to(package) for p in Path(package).glob(pattern)} == here != set()


def test_the_installed_command_trains(installed: Path, tmp_path: Path) -> None:
    assert "experiment=" in run(installed, "list", cwd=tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(f"a document of words {n}" for n in range(99)))
    settings = ["data=files", "data.path=text.txt", "data.unit=paragraph", "tokenizer=bytes"]
    out = run(installed, "train", *settings, "trainer.max_steps=2", cwd=tmp_path)
    assert "test perplexity" in " ".join(out.split()).replace("/", " ")
    assert (tmp_path / "outputs" / "quick").is_dir()


def test_a_clone_has_an_empty_outputs_directory() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "outputs"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert tracked.stdout.split() == ["outputs/.gitignore"]
    ignored = ["outputs/quick/x/metrics.jsonl", "outputs/.cache/x"]
    done = subprocess.run(["git", "check-ignore", *ignored], cwd=REPOSITORY, capture_output=True)
    assert done.stdout.decode().split() == ignored


def test_dependencies_keep_their_bounds() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    bounds = {"torch>=2.13,<2.14", "lightning>=2.6.6,<2.7", "hydra-core>=1.3.8,<1.4"}
    assert bounds <= set(project["dependencies"])


def test_nothing_says_to_install_the_lmkit_of_somebody_else() -> None:
    """On an index that name is not ours."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["name"] == "recurrent-lmkit"
    texts = [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("lmkit/**/*.py"),
    ]
    foreign = re.compile(r"pip install[^\n]*(?<![\w-])lmkit\b|(?<![\w-])lmkit\[")
    assert {
        str(path): found for path in texts if (found := foreign.findall(path.read_text()))
    } == {}
    assert sum("recurrent-lmkit[" in path.read_text() for path in texts) > 3
