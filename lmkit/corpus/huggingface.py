"""The source of datasets on the Hugging Face hub, through the extra package `datasets`."""

import importlib.util
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from lmkit.corpus import cutting, records
from lmkit.corpus.finding import SPLIT_NAMES
from lmkit.corpus.source import Document, Source
from lmkit.errors import UserError, install
from lmkit.ranges import Share
from lmkit.system import paths


class HuggingFace(Source):
    """A dataset of the hub, or local files, through `datasets`; a document is a row.

    Where rows are lines (`Salesforce/wikitext`), `heading` is the pattern of the rows that open
    a document.
    """

    is_remote = True

    def __init__(
        self,
        name: str,
        *,
        subset: str | None = None,
        revision: str | None = None,
        data_files: str | dict[str, str] | None = None,
        column: str = "text",
        heading: str | None = None,
        valid_fraction: Share = 0.1,
        test_fraction: Share = 0.1,
    ) -> None:
        """name: of the dataset, or of a builder of `datasets` such as json, with data_files.
        subset: the dataset's configuration.
        revision: branch, tag or commit; give one, and the text cannot change under you.
        data_files: a path, or one for each split.
        heading: the pattern of the rows that open a document, where rows are lines."""
        if importlib.util.find_spec("datasets") is None:
            raise UserError(
                f"data=huggingface needs the package `datasets`: {install('huggingface')}"
            )
        if name == "pandas":  # a builder of `datasets` since version 4
            raise UserError("data.name=pandas reads pickles, which run code: use another format")
        self._column = column
        self._cutter = None if heading is None else cutting.cutter("heading", heading)
        chosen: dict[str, object] = {"revision": revision, "data_files": data_files}
        self._request: dict[str, Any] = {"path": name, "name": subset, **chosen}
        settings = {"name": name, "subset": subset, **chosen, "column": column, "heading": heading}
        cut = {"valid": valid_fraction, "test": test_fraction}
        super().__init__(f"data.name={name}", settings, cut)

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        import datasets

        try:
            loaded = datasets.load_dataset(**self._request)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            raise UserError(f"{self._where}: `datasets` cannot load it: {error}") from error
        splits = {SPLIT_NAMES[name]: loaded[name] for name in loaded if name in SPLIT_NAMES}
        if "train" not in splits:
            raise UserError(
                f"{self._where} has no split train: it has {paths.listed(list(loaded))}; "
                "name files by split with data.data_files"
            )
        for split, dataset in splits.items():
            self._check_rows(split, dataset)
        return splits

    def _check_rows(self, split: str, dataset: Any) -> None:
        if self._column not in dataset.column_names:
            raise UserError(
                f"{self._where}, {split} has no column {self._column!r}: it has "
                f"{paths.listed(dataset.column_names)}; set data.column"
            )
        # `sample_by="document"` of `datasets` would make each whole file one document.
        if dataset.builder_name == "text" and self._cutter is None:
            raise UserError(
                f"{self._where} is plain text, whose rows are lines: set data.heading to the "
                "pattern that opens a document ('' for one a line), or take data=files"
            )

    def _own_splits(self) -> Iterable[str]:
        return self._datasets

    def _read(self, split: str) -> Iterator[Document]:
        texts = self._texts(split)
        rows: Iterator[tuple[int, str]] = enumerate(texts, 1)
        if self._cutter is not None:
            rows = self._cutter(text.removesuffix("\n") + "\n" for text in texts)
        for number, text in rows:
            yield Document(f"{split}:{number}", text)

    def _texts(self, split: str) -> Iterator[str]:
        number = 0
        for batch in self._datasets[split].select_columns(self._column).iter(batch_size=1000):
            for value in batch[self._column]:
                number += 1
                yield records.as_text(value, f"{self._where}, {split}, row {number}")
