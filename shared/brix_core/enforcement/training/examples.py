"""One example of a dataset: a prompt, and the valid data that was made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter

from brix_core.audit.canonical import canonical, digest
from brix_core.enforcement.outputs import EnforcedOutput

Split = Literal["train", "val", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One example.

    Attributes:
        id: SHA-256 of prompt, schema and output: equal examples have equal ids.
        prompt: What was asked.
        schema: The schema's name.
        json_schema: The schema.
        output: The valid data, as JSON.
        provider: Who answered.
        model: The model that answered.
        tokens_used: Tokens of all requests it took.
        retry_count: How often the model was asked again.
        timestamp: When it was asked, ISO 8601, UTC.
        version: The dataset's version that it belongs to.
    """

    id: str
    prompt: str
    schema: str
    json_schema: dict[str, Any]
    output: Any
    provider: str = ""
    model: str = ""
    tokens_used: int = 0
    retry_count: int = 0
    timestamp: str = ""
    version: str = ""

    @classmethod
    def of(cls, prompt: Any, schema: Any, output: EnforcedOutput, version: str) -> Example:
        """The example in an enforced output."""
        name, json_schema = _described(schema)
        data = _as_json(output.data)
        text = prompt if isinstance(prompt, str) else canonical(prompt).decode(errors="replace")
        return cls(
            id=digest([text, json_schema, data]),
            prompt=text,
            schema=name,
            json_schema=json_schema,
            output=data,
            provider=output.generation.provider,
            model=output.generation.model,
            tokens_used=output.tokens_used,
            retry_count=output.retry_count,
            timestamp=output.generation.timestamp.isoformat(),
            version=version,
        )

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Example:
        """The example in a line of a file.

        Raises:
            TypeError: It is none.
        """
        return cls(**fields)

    def fields(self) -> dict[str, Any]:
        """The example as JSON."""
        return asdict(self)

    def split(self, shares: tuple[float, float, float], seed: str = "") -> Split:
        """Which part of the dataset it belongs to: a matter of its prompt alone, today and on any machine.

        Equal prompts are in one part, so that no test prompt has been trained on.

        Args:
            shares: Of train, val and test.
            seed: Another one makes another division.
        """
        number = int.from_bytes(hashlib.sha256(f"{seed}\0{self.prompt}".encode(errors="replace")).digest()[:8], "big")
        place = number / 2**64 * sum(shares)
        if place < shares[0]:
            return "train"
        return "val" if place < shares[0] + shares[1] else "test"

    def messages(self, system: str | None = None) -> dict[str, Any]:
        """The example in the format of fine-tuning chat models.

        Source: OpenAI, "Supervised fine-tuning", platform.openai.com/docs/guides/supervised-fine-tuning, 2025: each
        line is ``{"messages": [{"role": ..., "content": ...}, ...]}``.
        """
        turns = [] if system is None else [{"role": "system", "content": system}]
        answer = json.dumps(self.output, ensure_ascii=False)
        return {
            "messages": [*turns, {"role": "user", "content": self.prompt}, {"role": "assistant", "content": answer}]
        }


def _described(schema: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(schema, Mapping):
        return str(schema.get("title") or "schema"), dict(schema)
    name = getattr(schema, "__name__", str(schema))
    return name, TypeAdapter(schema).json_schema()


def _as_json(data: Any) -> Any:
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json", by_alias=True)
    return TypeAdapter(Any).dump_python(data, mode="json")


__all__ = ["SPLITS", "Example", "Split"]
