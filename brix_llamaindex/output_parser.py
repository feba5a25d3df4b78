"""BrixOutputParser: a LlamaIndex output parser with the schema guard's extraction, repair and healing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import LLM
from llama_index.core.types import BaseOutputParser
from pydantic_core import to_json

from brix_core import checks
from brix_core.errors import BrixConfigurationError, BrixSchemaError, SchemaAttempt
from brix_core.guards.schema import MAX_ECHO, MAX_PROBLEMS
from brix_core.structured.response_schema import INSTRUCTIONS_HEADING, ResponseSchema, SchemaMismatch

Gives = Literal["instance", "json"]
"""What a parser makes of an answer: an instance of the schema, or the JSON of one."""


class BrixOutputParser(BaseOutputParser):
    """Asks for a valid instance of a schema, and reads it out of what a model wrote.

    What stands around the JSON is passed over, and JSON with a certain meaning is mended
    (`brix_core.structured.extraction`). An answer that does not fit raises `BrixSchemaError`, with
    every answer there was and what was wrong with it. A parser that was given an `llm` asks that first, with the answer
    and its problems.

    For ``LLMTextCompletionProgram`` and ``PromptTemplate(output_parser=...)`` (which formats only), and as
    ``llm.output_parser`` for `predict` and query engines. There LlamaIndex makes a text of what is parsed: give
    ``gives="json"``, and the response is JSON. Streamed, LlamaIndex refuses such an LLM (`NotImplementedError`); a
    guarded LLM serves it instead: chunks come as they are, and the answer is validated at the end, or held back until
    it is valid with ``stream_mode="validated"``.

    Args:
        schema: A Pydantic model, a dataclass, a TypedDict, or a JSON Schema.
        llm: Whom to ask again; a guarded LLM, and heals are paid for, paced and timed like all its calls. Asked by a
            blocking call, since LlamaIndex parses in one.
        max_schema_retries: How often.
        gives: An instance, or its JSON.

    Raises:
        BrixConfigurationError: The schema cannot be used, or an argument is none of those.

    Example:
        >>> from pydantic import BaseModel
        >>> class City(BaseModel):
        ...     name: str
        >>> BrixOutputParser(City).parse("It is {'name': 'Oslo',}.")
        City(name='Oslo')
        >>> BrixOutputParser(City, gives="json").parse("It is {'name': 'Oslo',}.")
        '{"name":"Oslo"}'
        >>> BrixOutputParser(City).parse("I do not know.")
        Traceback (most recent call last):
        ...
        brix_core.errors.BrixSchemaError: no valid City in 1 answer(s): ...
    """

    def __init__(
        self, schema: Any, *, llm: LLM | None = None, max_schema_retries: int = 2, gives: Gives = "instance"
    ) -> None:
        try:
            self.schema = ResponseSchema.of(schema)
        except BrixConfigurationError as error:
            raise BrixConfigurationError(str(error).replace("response_schema", "schema")) from error
        self.max_schema_retries = checks.whole("max_schema_retries", max_schema_retries, 0)
        checks.one_of("gives", gives, ("instance", "json"))
        self.gives: Gives = gives
        if llm is not None and not isinstance(llm, LLM):
            raise BrixConfigurationError(f"llm must be a LlamaIndex LLM, got {llm!r:.200}")
        self._llm = llm

    def format(self, query: str) -> str:
        """The query, with the instructions added; once.

        Example:
            >>> parser = BrixOutputParser({"title": "City", "type": "object"})
            >>> text = parser.format("Where is {place}?")
            >>> text.startswith("Where is {place}?"), parser.format(text) == text
            (True, True)
        """
        return query if INSTRUCTIONS_HEADING in query else f"{query}\n\n{self.schema.instructions}"

    def format_messages(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        """The messages, with the instructions added to one of them; those given stay as they are."""
        return super().format_messages([message.model_copy(deep=True) for message in messages])

    def parse(self, output: str) -> Any:
        """Read an answer.

        Raises:
            BrixSchemaError: It holds no valid instance, and none came of asking again.
            BrixConfigurationError: It is no text.
        """
        if not isinstance(output, str):
            raise BrixConfigurationError(
                f"parse takes the text of an answer, got {type(output).__name__}: {output!r:.200}; of a ChatResponse, "
                "that is response.message.content"
            )
        attempts: list[SchemaAttempt] = []
        while True:
            try:
                return self._given(self.schema.read(output))
            except SchemaMismatch as mismatch:
                problems = tuple((problem.path, problem.message) for problem in mismatch.problems)
                attempts.append(SchemaAttempt(output, problems))
                if self._llm is None or len(attempts) > self.max_schema_retries:
                    raise self._failure(attempts) from mismatch
                feedback = self.schema.feedback(mismatch)
            output = self._llm.chat(self._healing(output, feedback)).message.content or ""

    def _given(self, value: Any) -> Any:
        return to_json(value).decode() if self.gives == "json" else value

    def _healing(self, output: str, feedback: str) -> list[ChatMessage]:
        shown = output.strip() or "(no answer)"  # an empty message is refused by some providers
        if len(shown) > MAX_ECHO:
            shown = f"{shown[: MAX_ECHO // 2]}\n[...]\n{shown[-MAX_ECHO // 2 :]}"
        return [
            ChatMessage(self.schema.instructions, role="user"),
            ChatMessage(shown, role="assistant"),
            ChatMessage(feedback, role="user"),
        ]

    def _failure(self, attempts: Sequence[SchemaAttempt]) -> BrixSchemaError:
        problems = "; ".join(f"{path}: {message}" for path, message in attempts[-1].problems[:MAX_PROBLEMS])
        advice = "give the parser an llm to ask again" if self._llm is None else "raise max_schema_retries"
        return BrixSchemaError(
            f"no valid {self.schema.name} in {len(attempts)} answer(s): {problems}. Simplify the schema, or {advice}",
            attempts=attempts,
            schema_name=self.schema.name,
        )


__all__ = ["BrixOutputParser", "Gives"]
