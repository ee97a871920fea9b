"""The logger for Weights & Biases: inside the run directory, without an account, and never waiting
long for a network."""

import logging
import netrc
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

NETWORK_SECONDS = 15.0  # that wandb may take to start, and to end
FLUSH_SECONDS = 1.0  # of rows that a kill loses at most; wandb's default is 15


class WandbLogger(LightningWandbLogger):
    """Logs the rows of metrics.jsonl to wandb too, offline inside the run directory.

    A network that fails, at the start or later, costs a warning and at most half a minute, but
    never ends the run.

    project: of the run in wandb.
    mode: offline or online, which sends the rows where somebody is logged in.
    entity: the user or team that the project belongs to.
    group: puts runs together; the id of the sweep that the run belongs to unless given.
    tags: words to find the run by.
    name: of the run in wandb; NAME/ID unless given.
    notes: a longer description.
    job_type: what runs of a group are told apart by.
    """

    def __init__(
        self,
        project: str = "lmkit",
        mode: str = "offline",
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        name: str | None = None,
        notes: str | None = None,
        job_type: str = "train",
        *,
        save_dir: str | Path,
        version: str,
        run_name: str | None = None,
    ) -> None:
        import wandb

        if mode == "online" and not logged_in():
            log.warning("logger mode=online, but nobody is logged in to wandb: staying offline")
            mode = "offline"
        super().__init__(
            name=name or run_name or version,
            save_dir=save_dir,
            version=version,
            project=project,
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
            job_type=job_type,
            mode=mode,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=NETWORK_SECONDS,
                finish_timeout=NETWORK_SECONDS,
                x_transaction_log_flush_interval=FLUSH_SECONDS,
            ),
        )
        del self._wandb_init["anonymous"]  # Lightning passes it, wandb warns of it

    @staticmethod
    def mistakes(config: Mapping[str, Any], at: str) -> list[str]:
        """A mode that does not exist."""
        if config["mode"] in ("offline", "online"):
            return []
        return [f"{at}.mode={config['mode']}: expected offline or online"]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        import wandb

        try:
            return super().experiment
        except Exception as error:  # wandb's own errors, or any that its network layer raises
            if self._wandb_init["mode"] == "offline":
                raise
            log.warning("wandb cannot be reached (%s): staying offline", error)
            wandb.teardown()  # its service still holds the run's id
            self._wandb_init["mode"] = "offline"
            return super().experiment

    @rank_zero_only
    def close(self, exit_code: int = 0) -> None:
        """Finish the wandb run, or a later run in this process would be merged into it."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=exit_code)
            self._experiment = None


def logged_in() -> bool:
    """Whether there is a wandb key, in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def unsynced(directory: Path) -> list[Path]:
    """The offline directories of a run that are not uploaded, in the order `wandb sync` needs:
    oldest first."""
    paths = sorted(directory.glob("wandb/offline-run-*"))
    return [path for path in paths if not any(path.glob("*.wandb.synced"))]


def records(file: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file, up to where its writing was cut short.

    The file is a LevelDB log after a header of 7 bytes: blocks of 32 KiB made of chunks, each with
    its CRC, length, and a 1 if it is a whole record, 2 if its first, 3 if a middle, 4 if its last
    chunk.
    """
    from wandb.proto import wandb_internal_pb2

    data, offset, chunks = file.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        if left < 7:  # the end of a block is padded
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        offset += 7
        if kind == 0 or offset + length > len(data):
            return
        chunks = (chunks if kind in (3, 4) else b"") + data[offset : offset + length]
        offset += length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(chunks)
            yield record
