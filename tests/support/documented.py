"""The files and commands of a document, as a reader who does what it says has them."""

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
LIMIT = 240  # seconds for any one process
NAMED = re.compile(r"^`(?P<name>[\w./]+)`:\n```\w+\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def sections(name: str) -> dict[str, str]:
    """The text of each section of a document, by its title; before the first, by ""."""
    first, *found = re.split(r"^## (.*)\n", (DOCS / name).read_text(), flags=re.MULTILINE)
    return {"": first, **dict(zip(found[::2], found[1::2], strict=True))}


def write_files(text: str, place: Path) -> None:
    """Each file that a document shows under its name."""
    for found in NAMED.finditer(text):
        file = place / found["name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(found["text"])


def commands(text: str) -> list[str]:
    """The lines that a document has somebody type."""
    return [line for block in SHELL.findall(text) for line in block.splitlines()]


def shell(lines: list[str], place: Path, **environment: str) -> str:
    """Type the lines; what is printed. Each must be done well."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(lines)],
        cwd=place,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
