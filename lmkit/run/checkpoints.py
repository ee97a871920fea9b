"""Checkpoint files: written whole or not at all, checked before use, unable to run code."""

import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import lightning
import torch
from lightning.fabric.plugins import CheckpointIO

from lmkit.errors import UserError
from lmkit.system.files import naming, sync_directory, write_atomically
from lmkit.system.regular_file import DamagedError, check_kind, listed, opened, read_json

log = logging.getLogger(__name__)

FORMAT = 2

AVERAGED = "averaged"  # in a checkpoint: the average of the weights, by the names of `state_dict`
RAW = ":raw"  # after a checkpoint's name: its weights, not their average


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint files, each with a manifest `<stem>.json` that is renamed last.

    identity: the config and the hashes of tokenizer and text, for the manifest.
    """

    def __init__(self, identity: Mapping[str, Any] | None = None) -> None:
        self.identity = dict(identity or {})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        # Beside the target: $TMPDIR may be another file system, where a rename is a copy.
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with naming(target), temporary.open("wb") as file:
                writer = _Hashing(file)
                try:
                    torch.save(checkpoint, cast(IO[bytes], writer))
                except RuntimeError:  # what torch makes of a failed write
                    raise writer.error or OSError("torch.save failed") from None
                file.flush()
                os.fsync(file.fileno())
            # Fails if a callback has put in something that only a pickle could restore.
            torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        manifest = {
            "format": FORMAT,
            "step": checkpoint["global_step"],
            "epoch": checkpoint["epoch"],
            "epochs_done": _epochs_done(checkpoint),
            "sha256": writer.hash.hexdigest(),
            "bytes": writer.size,
            "lightning": lightning.__version__,
            "torch": str(torch.__version__),
            **self.identity,
        }
        write_atomically(manifest_path(target), json.dumps(manifest, indent=2).encode())

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return load_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        manifest_path(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def _epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """The number of finished epochs, as Lightning will count them on a resume."""
    loops = checkpoint.get("loops")
    return loops["fit_loop"]["epoch_progress"]["current"]["processed"] if loops else 0


class _Hashing:
    """A file that hashes what is written to it, so that it need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def manifest_path(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")


def load_checkpoint(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> dict[str, Any]:
    """The plain values and tensors of a checkpoint; running code from it is impossible.

    Raises UserError when it is missing, damaged, of a newer format, or not plain.
    """
    path = Path(os.path.realpath(path))  # last.ckpt is a link
    check_kind(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if manifest_path(path).is_file() and (reason := damage(path)):
        raise UserError(f"checkpoint {path} {reason}; give another one")
    _check_archive(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged bytes can make torch raise anything
        code = re.search(r"unsupported (?:global: )?GLOBAL (\S+)", str(error), re.IGNORECASE)
        kind = f"is refused: it asks for {code[1]}" if code else "cannot be read as one"
        raise UserError(f"checkpoint {path} {kind}; give another one") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"checkpoint {path} has no state_dict; give another one")
    return checkpoint


def evaluated_weights(checkpoint: Mapping[str, Any], *, raw: bool = False) -> dict[str, Any]:
    """The weights of a checkpoint that are evaluated: their average, where it has one, unless the
    weights themselves are asked for."""
    return {**checkpoint["state_dict"], **({} if raw else checkpoint.get(AVERAGED, {}))}


def _check_archive(path: Path) -> None:
    """Refuse a file that is not a zip of uncompressed files, as torch writes: it could expand."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, OSError) as error:
        raise UserError(f"checkpoint {path} cannot be read as one; give another one") from error
    size, declared = path.stat().st_size, sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or declared > size:
        raise UserError(
            f"checkpoint {path} is refused: its {size:,} bytes would unpack to {declared:,}, and "
            "torch packs nothing; give another one"
        )


def damage(path: Path) -> str | None:
    """How a checkpoint differs from its manifest, as the end of a sentence; None if it is sound.

    Raises UserError for one that is sound but of a newer format, or that cannot be read.
    """
    try:
        with opened(manifest_path(path)):  # one that cannot be read may be sound: raise
            pass
    except FileNotFoundError:
        return "has no manifest: its writing was cut short"
    try:
        manifest = read_json(manifest_path(path))
    except DamagedError:
        return "has a damaged manifest"
    if not _is_whole(manifest):
        return "has a damaged manifest"
    if (version := manifest["format"]) > FORMAT:
        raise UserError(
            f"checkpoint {path} has format {version}, this lmkit reads up to {FORMAT}: update lmkit"
        )
    with opened(path) as file:
        if (size := os.fstat(file.fileno()).st_size) != manifest["bytes"]:
            return f"has {size} bytes where its manifest says {manifest['bytes']}"
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
            return "differs from its manifest in its SHA-256"
    return None


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has all the values that lmkit needs, with the right types."""
    numbers = all(type(manifest.get(key)) is int for key in ("format", "step", "epoch", "bytes"))
    more = type(manifest.get("epochs_done", 0)) is int
    config = isinstance(manifest.get("config", {}), Mapping | str)  # older ones have a hash
    splits = manifest.get("splits", {})
    if not (numbers and more and config and isinstance(splits, Mapping)):
        return False
    hashes = [manifest.get(key, "") for key in ("sha256", "tokenizer", "store")]
    return all(isinstance(each, str) for each in (*hashes, *splits.values()))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; empty if there is none, or a damaged one."""
    try:
        manifest = read_json(manifest_path(Path(os.path.realpath(path))))
    except (FileNotFoundError, DamagedError):
        return {}
    return manifest if _is_whole(manifest) else {}


def num_epochs_done(manifest: Mapping[str, Any]) -> int:
    """The finished epochs of a checkpoint; older manifests have only the epoch that was current."""
    return int(manifest.get("epochs_done", manifest.get("epoch", 0)))


def newest_manifest(directory: Path) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint in a run's `checkpoints/` that has a manifest, and its manifest; the
    file itself is not checked."""
    for path in reversed(steps(directory)):
        if manifest := read_manifest(path):
            return path, manifest
    return None, {}


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest sound checkpoint in a run's `checkpoints/`, from which the run can resume; None if
    none was ever written.

    Newer ones that are damaged are set aside as `<name>.damaged`, with a warning that says why;
    there is a warning too for each that is missing beside its manifest.
    """
    manifests = listed(directory, "step-*.json")
    gone = [path for each in manifests if not (path := each.with_suffix(".ckpt")).exists()]
    for path in gone:
        log.warning("checkpoint %s has gone: its manifest is there", path)
    reasons = [f"{path.name} has gone" for path in gone]
    for path in reversed(steps(directory)):
        reason = damage(path)
        if reason is None:
            if (version := read_manifest(path)["format"]) < FORMAT:
                raise UserError(
                    f"checkpoint {path} has format {version}: it can be evaluated, but a run goes "
                    f"on from format {FORMAT} alone; go on with the lmkit that wrote it"
                )
            if reasons:
                link(directory / "last.ckpt", path)
                if not (directory / "best.ckpt").is_file():
                    (directory / "best.ckpt").unlink(missing_ok=True)  # it was the damaged one
            return path
        log.warning("checkpoint %s %s; set aside, going on from the one before", path, reason)
        reasons.append(f"{path.name} {reason}")
        path.replace(path.with_name(f"{path.name}.damaged"))
        manifest_path(path).unlink(missing_ok=True)
    reasons = reasons or [f"{path.name} was set aside" for path in directory.glob("*.ckpt.damaged")]
    if reasons:
        raise UserError(f"no checkpoint in {directory} can be used: {'; '.join(reasons)}")
    return None


def steps(directory: Path) -> list[Path]:
    """The checkpoints of a run by step, oldest first."""
    return listed(directory, "step-*.ckpt")


def link(name: Path, target: Path) -> None:
    """Make `name` a link to its neighbour `target`; an existing link is replaced atomically."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    with naming(name):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(name)
        sync_directory(name.parent)
