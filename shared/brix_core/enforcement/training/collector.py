"""DatasetCollector: valid answers, kept as training data while they are made.

Each example is one line of ``VERSION.jsonl`` in the collector's folder, written whole as soon as there is one: whoever
kills the process loses at most the line that is being written, and the next writer begins a new one. Exports are
written beside their goal and then put in its place, so that a reader never sees half of one.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

from brix_core import checks
from brix_core.appending import append_line
from brix_core.audit.canonical import parsed
from brix_core.audit.redaction import scrubbed
from brix_core.enforcement.outputs import EnforcedOutput
from brix_core.enforcement.training.examples import SPLITS, Example, Split, are_messages, asked
from brix_core.errors import BrixConfigurationError

log = logging.getLogger(__name__)

Filter = Callable[[Example], bool]
"""Whether an example is wanted."""

Redact = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Gets an example's fields, and gives what may be kept; None for nothing."""

DEFAULT_VERSION: Final = "v1"
_SUM_TOLERANCE: Final = 1e-9
_COLUMNS: Final = tuple(Example.__dataclass_fields__)


class DatasetCollector:
    """Keeps valid answers. Safe to use from several threads and processes.

    Args:
        output_dir: Folder of the dataset; made when there is none.
        version: Which version of the dataset new examples belong to; letters, digits, ``.``, ``_`` and ``-``.
        filters: An example is kept only if all of them say so.
        redact: Takes out what must not be kept. What looks like an API key is blotted out in any case. ``prompt`` is
            the text of ``messages``: a hook that changes but one of them changes both.
        deduplicate: Keep equal examples (messages, schema and output) once, within a version.
        split: Shares of train, val and test: three fractions whose sum is 1.
        split_seed: Another one makes another division.
        fsync: Have each example reach the disk before the next; else a machine that loses its power may lose some.

    Raises:
        BrixConfigurationError: The folder cannot be used, or an argument is out of range.

    Example:
        >>> import tempfile
        >>> collector = DatasetCollector(output_dir=tempfile.mkdtemp())
        >>> len(collector), collector.versions(), collector.export_to_jsonl("dataset.jsonl").name
        (0, [], 'dataset.jsonl')
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        *,
        version: str = DEFAULT_VERSION,
        filters: Sequence[Filter] = (),
        redact: Redact | None = None,
        deduplicate: bool = True,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: str = "",
        fsync: bool = False,
    ) -> None:
        self.output_dir = _folder(output_dir)
        self.version = _checked_version(version)
        self._filters = _checked_filters(filters)
        if redact is not None and not callable(redact):
            raise BrixConfigurationError(
                f"redact must be a function of an example's fields, a dict, or None, got {redact!r:.200}"
            )
        self._redact = redact
        self._deduplicate = checks.flag("deduplicate", deduplicate)
        self._shares = _checked_shares(split)
        self._seed = split_seed
        self._fsync = checks.flag("fsync", fsync)
        self._lock = threading.Lock()
        self._seen: set[str] | None = None

    def __len__(self) -> int:
        """Examples of this version."""
        return sum(1 for _ in self.examples())

    def collect(self, *, prompt: Any, schema: Any, output: EnforcedOutput) -> bool:
        """Keep an example of a successful output. Called by the engine.

        Returns:
            Whether it was kept, and not filtered out, redacted away or there already.

        Raises:
            BrixConfigurationError: `redact` gave what is no example; nothing was written.
            OSError: It could not be written; nothing of it was.
        """
        if not output.success:
            return False
        example = self._redacted(Example.of(prompt, schema, output, self.version))
        if example is None or not all(wanted(example) for wanted in self._filters):
            return False
        with self._lock:
            if self._deduplicate:
                if self._seen is None:
                    self._seen = {known.id for known in self.examples()}
                if example.id in self._seen:
                    return False
            line = _written(example)
            append_line(self._file(self.version), line.encode(errors="replace") + b"\n", sync=self._fsync)
            if self._seen is not None:
                self._seen.add(example.id)
        return True

    def examples(
        self, *, version: str | None = None, split: Split | None = None, filters: Iterable[Filter] = ()
    ) -> Iterator[Example]:
        """The examples, oldest first. Lines that a killed process left half-written are passed over.

        Args:
            version: Of which version; the collector's own when left out.
            split: Only this part.
            filters: Only those of which all of these say so.
        """
        if split is not None:
            checks.one_of("split", split, SPLITS)
        wanted, seen = _checked_filters(filters), set[str]()
        for example in _read(self._file(self.version if version is None else _checked_version(version))):
            if self._deduplicate and example.id in seen:  # another process collected it, too
                continue
            seen.add(example.id)
            if split in (None, self.split_of(example)) and all(wants(example) for wants in wanted):
                yield example

    def split_of(self, example: Example) -> Split:
        """Which part an example belongs to; see `Example.split`."""
        return example.split(self._shares, self._seed)

    def versions(self) -> list[str]:
        """The versions there are, in order of their names."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self.output_dir.glob(f"*{_SUFFIX}"))

    def export_to_jsonl(self, path: str | PathLike[str], **selection: Any) -> Path:
        """Write examples as one JSON object a line.

        Args:
            path: The file; a relative one is in the collector's folder.
            **selection: See `examples`.

        Returns:
            The file.
        """
        return self._export(path, (_line(example.fields()) for example in self.examples(**selection)))

    def export_to_json(self, path: str | PathLike[str], **selection: Any) -> Path:
        """Write examples as one JSON array. Arguments as in `export_to_jsonl`."""
        examples = [example.fields() for example in self.examples(**selection)]
        return self._export(path, [json.dumps(examples, ensure_ascii=False, indent=2) + "\n"])

    def export_to_csv(self, path: str | PathLike[str], **selection: Any) -> Path:
        """Write examples as a table; schema, output and messages are JSON. Arguments as in `export_to_jsonl`."""

        def rows() -> Iterator[str]:
            yield _row(_COLUMNS)
            for example in self.examples(**selection):
                fields = example.fields()
                yield _row(
                    [
                        json.dumps(fields[name], ensure_ascii=False)
                        if name in ("json_schema", "output", "messages")
                        else fields[name]
                        for name in _COLUMNS
                    ]
                )

        return self._export(path, rows())

    def export_to_chat(self, path: str | PathLike[str], *, system: str | None = None, **selection: Any) -> Path:
        """Write examples in the format of fine-tuning chat models, one a line.

        Args:
            path: As in `export_to_jsonl`.
            system: A system message for those that have none of their own.
            **selection: See `examples`.
        """
        return self._export(path, (_line(example.chat(system)) for example in self.examples(**selection)))

    def export_splits(self, folder: str | PathLike[str], **selection: Any) -> dict[Split, Path]:
        """Write ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` into a folder, relative to the collector's.

        Returns:
            The files.
        """
        goal = self.output_dir / folder
        return {part: self.export_to_jsonl(goal / f"{part}.jsonl", split=part, **selection) for part in SPLITS}

    def _export(self, path: str | PathLike[str], parts: Iterable[str]) -> Path:
        goal = self.output_dir / path
        if goal.name.endswith(_SUFFIX):
            raise BrixConfigurationError(
                f"{goal.name} would be taken for a version of the dataset itself; export to another name"
            )
        goal.parent.mkdir(parents=True, exist_ok=True)
        new = goal.with_name(f".{goal.name}.{os.getpid()}-{threading.get_ident()}.new")
        try:
            with new.open("w", encoding="utf-8", errors="replace", newline="") as file:
                file.writelines(parts)
            new.replace(goal)
        finally:
            new.unlink(missing_ok=True)
        return goal

    def _redacted(self, example: Example) -> Example | None:
        before = scrubbed(example.fields())
        if self._redact is None:
            return replace(Example.read(before), id=example.id, version=example.version)
        fields: Any = self._redact(copy.deepcopy(before))
        if fields is None:
            return None
        if not isinstance(fields, dict):
            raise BrixConfigurationError(
                f"redact must return the fields of an example, a dict, or None to drop it, got {type(fields).__name__}"
            )
        try:
            redacted = Example.read(_agreeing(fields, before))
        except TypeError as error:
            raise BrixConfigurationError(
                f"redact must return the fields of an example, with other values: {error}"
            ) from error
        return replace(redacted, id=example.id, version=example.version)

    def _file(self, version: str) -> Path:
        return self.output_dir / f"{version}{_SUFFIX}"


_SUFFIX: Final = ".examples.jsonl"


def _agreeing(fields: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The fields, of whose prompt and messages none says what was taken out of the other."""
    same_prompt, same_messages = fields.get("prompt") == before["prompt"], fields.get("messages") == before["messages"]
    if same_messages and not same_prompt:
        return {**fields, "messages": []}
    messages: Any = fields.get("messages")
    if same_prompt and not same_messages and are_messages(messages):
        return {**fields, "prompt": asked(messages)}
    return fields


def _written(example: Example) -> str:
    try:
        return json.dumps(example.fields(), ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:  # the rest is JSON
        raise BrixConfigurationError(f"redact must return fields that are JSON: {error}") from error


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _row(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _read(path: Path) -> Iterator[Example]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if line.strip():
                        yield Example.read(parsed(line))
                except (TypeError, ValueError):
                    log.warning("%s:%d is no example, and left out: its writer was killed", path, number)
    except FileNotFoundError:
        return


def _folder(path: str | PathLike[str]) -> Path:
    if not isinstance(path, str | PathLike) or not str(path):
        raise BrixConfigurationError(f"output_dir must be a folder's path, got {path!r:.200}")
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BrixConfigurationError(f"output_dir {str(path)!r} cannot be used: {error}") from error
    return folder


def _checked_version(version: Any) -> str:
    if isinstance(version, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", version):
        return version
    raise BrixConfigurationError(
        f"version must be of letters, digits, '.', '_' and '-', at most 100, got {version!r:.200}"
    )


def _checked_shares(split: Any) -> tuple[float, float, float]:
    shares = tuple(split) if isinstance(split, tuple | list) else ()
    if len(shares) != len(SPLITS):
        raise BrixConfigurationError(f"split must be the shares of train, val and test, got {split!r:.200}")
    train, val, test = (checks.fraction("a share of split", share, zero=True) for share in shares)
    if abs(train + val + test - 1.0) > _SUM_TOLERANCE:
        raise BrixConfigurationError(f"the shares of split must have the sum 1, got {split!r:.200}")
    return train, val, test


def _checked_filters(filters: Any) -> tuple[Filter, ...]:
    listed = isinstance(filters, Iterable) and not isinstance(filters, str | bytes | Mapping)
    found: tuple[Any, ...] = tuple(filters) if listed else ()
    if not listed or not all(map(callable, found)):
        raise BrixConfigurationError(
            f"filters must be a list of functions that say whether an example is wanted, got {filters!r:.200}"
        )
    return found


__all__ = ["DEFAULT_VERSION", "DatasetCollector", "Filter", "Redact"]
