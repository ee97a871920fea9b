"""`lmkit completion bash|zsh`: completion with the tab key, from files and source text only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmkit.config.groups import CONF, config_folders, group_options, recipe_names
from lmkit.config.keys import function_keys, node_keys
from lmkit.config.mistakes import nearest
from lmkit.config.targets import SLOTS
from lmkit.errors import UserError
from lmkit.run import run_directories
from lmkit.system.regular_file import DamagedError, read_yaml

SCRIPTS = {
    # In a word with = or :, readline replaces only the part after it.
    "bash": r"""_lmkit() {
    local line=${COMP_LINE:0:COMP_POINT} word=${COMP_LINE:0:COMP_POINT} found
    word=${word##* }
    COMPREPLY=()
    while IFS= read -r found; do
        case $COMP_WORDBREAKS in *=*) found=${found#"${word%"${word##*[=:]}"}"} ;; esac
        COMPREPLY+=("$found")
    done < <("${COMP_WORDS[0]}" --complete "$line" 2>/dev/null)
}
complete -o nospace -F _lmkit lmkit
""",
    "zsh": r"""#compdef lmkit
_lmkit() {
    local -a found
    found=("${(@f)$("${words[1]}" --complete "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    [[ -n "$found" ]] && compadd -Q -S '' -- "${found[@]}"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u }
compdef _lmkit lmkit
""",
}
VALUES = {"--cfg": ["job", "hydra", "all"], "-c": ["job"], "--info": ["all", "defaults", "config"]}
PATHS = "file|path|table|out|store|outputs"
PATH_KEY = re.compile(rf"({PATHS}|(\w+\.)+(\w+_)?path|(\w+\.)+paths\.\w+)$")
SPLITS = ("train", "valid", "test")


def completion(shell: str) -> dict[str, str]:
    """Print what makes the tab key complete commands, options, keys, runs and file names.

        eval "$(lmkit completion bash)"
        eval "$(lmkit completion zsh)"

    The line goes into ~/.bashrc or ~/.zshrc.
    """
    if shell not in SCRIPTS:
        raise UserError(f"lmkit completion {shell}: no such shell; {nearest(shell, SCRIPTS)}")
    print(SCRIPTS[shell], end="")
    return {"script": SCRIPTS[shell]}


def complete(line: str, commands: Mapping[str, Any]) -> list[str]:
    """Completions of the last word of a command line, as whole words; a finished one ends with a
    space."""
    words = _words(line)[1:]
    word, before = words[-1] if words else "", words[:-1]
    if not before:
        names = [*commands, "--help", "--version"]
        return [f"{name} " for name in names if name.startswith(word)]
    command = commands.get(before[0])
    if command is None:
        return []
    return [each for each in _candidates(word, before[1:], command) if each.startswith(word)]


def _words(line: str) -> list[str]:
    """The words of a command line, with their quotes; the last may be unfinished, or empty."""
    words = re.findall(r"(?:[^\s'\"\\]|\\.|'[^']*'?|\"[^\"]*\"?)+", line)
    return [*words, ""] if line[-1:].isspace() else words


def _candidates(word: str, before: Sequence[str], command: Any) -> Iterator[str]:
    last = before[-1] if before else ""
    folders = _folders(before)
    if last == "--config-dir":
        yield from _files(word)
    elif last == "--config-name":
        yield from (f"{file.stem} " for folder in folders for file in folder.glob("*.yaml"))
    elif last in VALUES:
        yield from (f"{value} " for value in VALUES[last])
    elif word.startswith("-"):
        yield from (f"{flag} " for flag in command.flags)
    elif len([each for each in before if each[:1] != "-" and "=" not in each]) < len(command.words):
        yield from _first_words(word, before, command)
    elif "=" in word:
        yield from _values(word, before, command, folders)
    else:
        yield from _keys(word, before, command, folders)


def _folders(before: Sequence[str]) -> list[Path]:
    config_dir = None
    for flag, value in pairwise([*before, ""]):
        if flag == "--config-dir" or flag.startswith("--config-dir="):
            config_dir = flag.partition("=")[2] or value
    try:
        return config_folders(config_dir)
    except UserError:
        return config_folders(None)


def _first_words(word: str, before: Sequence[str], command: Any) -> Iterator[str]:
    if command.words[0] == "shell":
        yield from (f"{shell} " for shell in SCRIPTS)
    elif command.words[0] == "recipe":
        yield from (f"{name} " for name in recipe_names(_folders(before)))
    elif command.words[0] != "run":
        kinds = {file.stem for file in CONF.glob("*.yaml")} - {"train"}
        yield from (f"{kind} " for kind in sorted(kinds))
    else:
        yield "latest "
        yield from (f"{run.name} " for run in _runs(before))
        if "/" in word:
            yield from _files(word)


def _runs(before: Sequence[str]) -> list[Path]:
    """The directories of all runs, the newest first."""
    outputs = [each.partition("=")[2] for each in before if each.startswith("outputs=")]
    try:
        runs = run_directories(outputs[-1] if outputs else "outputs")
    except DamagedError:
        return []
    return sorted(runs, key=_changed, reverse=True)


def _changed(run: Path) -> float:
    """The time of a run's last start; 0 if it cannot be read."""
    try:
        return (run / "config.yaml").lstat().st_mtime
    except OSError:
        return 0.0


def _run(before: Sequence[str]) -> Path | None:
    """The run that a command line names, if it can be found by its path or the start of its id."""
    named = next((each for each in before if "=" not in each and each[:1] != "-"), "")
    if named and _changed(Path(named)):
        return Path(named)
    runs = _runs(before)
    return next((r for r in runs if named == "latest" or r.name.startswith(named)), None)


def _values(
    word: str, before: Sequence[str], command: Any, folders: Sequence[Path]
) -> Iterator[str]:
    key, _, value = word.partition("=")
    options = group_options(folders)
    if PATH_KEY.match(key):
        yield from (f"{key}={file}" for file in _files(value))
        return
    if key == "format":
        values = ["json", "text"]
    elif key == "checkpoint":
        run = _run(before)
        values = [file.stem for file in sorted((run / "checkpoints").glob("*.ckpt"))] if run else []
    elif key == "split":
        values = list(SPLITS)
    elif key in options and (command.takes_config or "selected" in command.positional):
        values = options[key]
    else:
        own = function_keys(command.module, command.function)
        keys = own if key in own else _config_keys(key, before, command, folders)
        values = _of_type(keys[key].type) if key in keys else []
    yield from (f"{key}={each} " for each in values)


def _of_type(hint: str) -> list[str]:
    """The values that a type, as text, allows: options of a Literal, true and false, null."""
    arms = hint.replace("list[", "").replace("]", "").split(" | ")
    values = ["true", "false"] if "bool" in arms else []
    types = {"int", "float", "str", "bool", "Any", "Path"}
    plain = [arm for arm in arms if re.fullmatch(r"[a-z0-9][\w/-]*", arm) and arm not in types]
    return list(dict.fromkeys([*values, *plain]))


def _keys(word: str, before: Sequence[str], command: Any, folders: Sequence[Path]) -> Iterator[str]:
    options = group_options(folders)
    if "selected" in command.positional:
        yield from (f"{group}=" for group in options)
        return
    if "." not in word:
        yield from (f"{key}=" for key in (*command.own, "format"))
        if command.words[:1] == ("run",):
            yield "outputs="
        if not command.takes_config:
            return
        yield from (f"{group}=" for group in options if group != "sweep" or command.name == "sweep")
        yield from (f"{group}." for group in SLOTS)
        yield from (f"{key}=" for key in node_keys({}))
        return
    keys = []
    for path in _config_keys(word, before, command, folders):
        # Complete up to the next dot: `callbacks.` before `callbacks.samples.prompt`.
        rest = path[len(word) :]
        end, dot, _ = rest.partition(".")
        keys.append(f"{word}{end}{dot or '='}" if path.startswith(word) else f"{path}=")
    yield from dict.fromkeys(keys)


def _config_keys(
    key: str, before: Sequence[str], command: Any, folders: Sequence[Path]
) -> dict[str, Any]:
    """The keys of the group that `key` begins with, and of the root."""
    if not command.takes_config:
        return {}
    group = key.partition(".")[0]
    run = _run(before) if command.words[:1] == ("run",) else None
    config = _read(run / "config.yaml") if run else {}
    chosen = _choices(before, folders, "analyze" not in command.name)
    node = config.get(group)
    if group in SLOTS and (
        not isinstance(node, dict) or any(each.startswith(f"{group}=") for each in before)
    ):
        node = {}
        for option in chosen.get(group, []):
            file = next((f for d in folders if (f := d / group / f"{option}.yaml").is_file()), None)
            node |= _read(file) if file else {}
    return node_keys({group: node} if group in SLOTS else {})


def _choices(before: Sequence[str], folders: Sequence[Path], preset: bool) -> dict[str, list[str]]:
    """The options that a command line chooses for each group, including choices of its presets."""
    chosen: dict[str, list[str]] = {}
    arguments = {k: v for k, is_, v in (each.partition("=") for each in before) if is_}
    entries: list[Any] = _read(folders[0] / "train.yaml")["defaults"]
    for entry in (entry for entry in entries if isinstance(entry, dict)):
        for group, option in entry.items():
            chosen[group] = _options(arguments.get(group, option))
    for group in ("data", "experiment", "debug") if preset else ():
        for option in chosen.get(group, []):
            files = [d / group / f"{option}.yaml" for d in folders]
            file = next((file for file in files if file.is_file()), None)
            for entry in _read(file).get("defaults", []) if file else []:
                for name, value in entry.items() if isinstance(entry, dict) else ():
                    name = name.removeprefix("override ").removeprefix("/").partition("@")[0]
                    if name not in arguments:
                        chosen[name] = _options(value)
    return chosen


def _options(value: Any) -> list[str]:
    items = value if isinstance(value, list) else str(value).strip("[]").split(",")
    return [str(item).strip() for item in items]


def _read(file: Path) -> dict[str, Any]:
    """The content of a YAML file; empty if it cannot be read."""
    try:
        content: dict[str, Any] = read_yaml(file)
    except (FileNotFoundError, DamagedError):
        return {}
    return content


def _files(word: str) -> Iterator[str]:
    """The file names that begin with a word, with special characters of the shell escaped."""
    plain = re.sub(r"\\(.)", r"\1", word).strip("'\"")
    directory, slash, start = plain.rpartition("/")
    try:
        entries = sorted(Path(directory + slash or ".").expanduser().iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(start) and (start or entry.name[0] != "."):
            name = re.sub(r"([^\w@%+=:,./~-])", r"\\\1", f"{directory}{slash}{entry.name}")
            yield f"{name}/" if entry.is_dir() else f"{name} "
