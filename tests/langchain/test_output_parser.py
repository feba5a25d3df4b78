"""`BrixOutputParser` in chains, over real HTTP."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_classic.output_parsers import OutputFixingParser, RetryOutputParser, RetryWithErrorOutputParser
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, ToolCall
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel
from typing_extensions import TypedDict

from brix_core import BrixBudgetError
from brix_core.demo import DemoServer, JsonReply, MalformedJson, Reply, SlowFirstToken, ToolCalls
from brix_core.errors import BrixConfigurationError, BrixSchemaError
from brix_core.store import MemoryStore
from brix_langchain import BrixOutputParser, guard
from tests.langchain.conftest import Make
from tests.langchain.support import MODEL, RATES

WAYS = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch")


class Answer(BaseModel):
    author: str
    year: int


AUSTEN = Answer(author="Austen", year=1815)
JSON = {"author": "Austen", "year": 1815}
PROMPT = ChatPromptTemplate.from_messages([("system", "{format}"), ("human", "Who wrote {title}?")])
ASKED = {"title": "Emma", "format": BrixOutputParser(Answer).get_format_instructions()}


async def ask(chain: Any, way: str, value: Any = ASKED) -> Any:
    if way == "invoke":
        return chain.invoke(value)
    if way == "ainvoke":
        return await chain.ainvoke(value)
    if way == "batch":
        return chain.batch([value])[0]
    if way == "abatch":
        return (await chain.abatch([value]))[0]
    if way == "stream":
        return list(chain.stream(value))[-1]
    return [part async for part in chain.astream(value)][-1]


def guarded(model: Any, **options: Any) -> Any:
    return guard(model, max_cost_usd=1.0, prices={MODEL: RATES}, store=MemoryStore(), **options)


@pytest.mark.parametrize("way", WAYS)
class TestChains:
    @pytest.mark.parametrize(
        "text",
        [
            json.dumps(JSON),
            f"Of course!\n```json\n{json.dumps(JSON)}\n```\nAnything else?",
            "<think>{'author': 'Eliot', 'year': 1}</think>It is {'author': 'Austen', 'year': 1815,}",
        ],
    )
    async def test_the_instance_is_read_out_of_the_answer(
        self, way: str, text: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = Reply(text)
        assert await ask(PROMPT | guarded(chat()) | BrixOutputParser(Answer), way) == AUSTEN

    async def test_and_out_of_a_tool_call(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = ToolCalls([("note", {"text": "{}"}), ("Answer", JSON)], text="I call {it}.")
        assert await ask(PROMPT | chat().bind_tools([Answer]) | BrixOutputParser(Answer), way) == AUSTEN

    async def test_what_does_not_fit_is_an_output_parser_exception(
        self, way: str, chat: Make, server: DemoServer
    ) -> None:
        server.default = JsonReply({"author": "Austen", "year": "long ago"})
        with pytest.raises(OutputParserException, match="year") as caught:
            await ask(PROMPT | chat() | BrixOutputParser(Answer), way)
        assert caught.value.llm_output == '{"author":"Austen","year":"long ago"}'
        assert caught.value.send_to_llm
        assert "$.year" in str(caught.value.observation)
        assert isinstance(caught.value.__cause__, BrixSchemaError)

    async def test_a_chain_can_be_retried(self, way: str, chat: Make, server: DemoServer) -> None:
        server.script(Reply("I do not know."), JsonReply(JSON))
        chain = (PROMPT | chat() | BrixOutputParser(Answer)).with_retry(wait_exponential_jitter=False)
        if way in ("stream", "astream"):  # LangChain does not retry streams
            with pytest.raises(OutputParserException):
                await ask(chain, way)
        else:
            assert await ask(chain, way) == AUSTEN

    async def test_an_answer_is_healed(self, way: str, chat: Make, server: DemoServer) -> None:
        model = guarded(chat())
        server.script(Reply("It was Austen."), MalformedJson('{"author": "Austen"'), JsonReply(JSON))
        assert await ask(PROMPT | model | BrixOutputParser(Answer).with_llm(model), way) == AUSTEN
        assert sum(len(trace["attempts"]) for trace in model.get_traces()) == server.stats.requests == 3
        heal = [message["content"] for message in server.requests[-1].body["messages"]]
        assert heal[0] == ASKED["format"]
        assert heal[1] == '{"author": "Austen"'  # the latest answer only: the prompt does not grow
        assert "year" in heal[2]

    async def test_in_vain_only_so_often(self, way: str, chat: Make, server: DemoServer) -> None:
        model = guarded(chat())
        server.default = Reply("It was Austen.")
        with pytest.raises(OutputParserException, match="max_schema_retries") as caught:
            await ask(PROMPT | model | BrixOutputParser(Answer).with_llm(model, max_schema_retries=1), way)
        assert isinstance(caught.value.__cause__, BrixSchemaError)
        assert [attempt.text for attempt in caught.value.__cause__.attempts] == ["It was Austen."] * 2
        assert server.stats.requests == 2

    async def test_a_heal_that_is_refused_is_a_refusal(self, way: str, chat: Make, server: DemoServer) -> None:
        server.default = Reply("It was Austen.")
        poor = guard(chat(), max_cost_usd=1e-9, prices={MODEL: RATES}, store=MemoryStore())
        with pytest.raises(BrixBudgetError):
            await ask(PROMPT | chat() | BrixOutputParser(Answer).with_llm(poor), way)
        assert server.stats.requests == 1


@pytest.mark.parametrize("way", WAYS)
async def test_heals_belong_to_the_session_of_the_run(way: str, chat: Make, server: DemoServer) -> None:
    model = guarded(chat())
    chain = PROMPT | model | BrixOutputParser(Answer).with_llm(model)
    server.script(Reply("It was Austen."), JsonReply(JSON))
    await ask(chain.with_config(configurable={"session_id": "ann"}), way)
    assert len(model.get_traces("ann")) == server.stats.requests == 2


@pytest.mark.parametrize("by_tool", [True, False])
@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_a_stream_gives_the_value_as_it_grows(way: str, by_tool: bool, chat: Make, server: DemoServer) -> None:
    server.default = ToolCalls([("Answer", JSON)]) if by_tool else Reply(f"It is {json.dumps(JSON)}", chunk_size=4)
    chain = PROMPT | guarded(chat()) | BrixOutputParser(Answer)
    parts = list(chain.stream(ASKED)) if way == "stream" else [part async for part in chain.astream(ASKED)]
    assert len(parts) > 2
    assert parts[-1] == AUSTEN
    for part in parts[:-1]:
        assert isinstance(part, dict)
        assert part.keys() <= JSON.keys()
        assert JSON["author"].startswith(part.get("author", ""))  # type: ignore[attr-defined]


class TestParsing:
    def test_texts_and_generations(self) -> None:
        parser, text = BrixOutputParser(Answer), json.dumps(JSON)
        assert parser.parse(text) == AUSTEN
        assert parser.parse_result([Generation(text=text)]) == AUSTEN
        assert parser.parse_result([ChatGeneration(message=AIMessage(text))]) == AUSTEN
        assert parser.parse_result([ChatGeneration(message=AIMessage([{"type": "text", "text": text}]))]) == AUSTEN
        assert parser.parse_result([Generation(text='{"author": "Au')], partial=True) == {"author": "Au"}
        assert parser.parse_result([Generation(text="It is")], partial=True) is None

    async def test_async(self) -> None:
        parser, text = BrixOutputParser(Answer), json.dumps(JSON)
        assert await parser.aparse(text) == AUSTEN
        assert await parser.aparse_result([Generation(text=text)]) == AUSTEN
        assert await parser.aparse_result([Generation(text='{"year": 18')], partial=True) == {"year": 18}

    def test_arguments_that_langchain_could_not_read_are_mended(self) -> None:
        broken = invalid_tool_call(name="Answer", args="{'author': 'Austen', 'year': 1815,}", id="c", error="no JSON")
        assert BrixOutputParser(Answer).invoke(AIMessage("", invalid_tool_calls=[broken])) == AUSTEN

    def test_arguments_that_were_cut_off_are_not(self) -> None:
        chunk = {"name": "Answer", "args": '{"author": "Aus', "id": "c", "index": 0, "type": "tool_call_chunk"}
        cut = AIMessageChunk(content="", tool_call_chunks=[chunk])  # type: ignore[list-item]
        with pytest.raises(OutputParserException):
            BrixOutputParser(Answer).invoke(cut)

    def test_the_only_call_will_do_where_there_is_no_text(self) -> None:
        message = AIMessage("", tool_calls=[ToolCall(name="final_answer", args=JSON, id="c")])
        assert BrixOutputParser(Answer).invoke(message) == AUSTEN

    def test_a_stream_of_whole_messages(self) -> None:
        parser = BrixOutputParser(Answer)

        def messages() -> Iterator[Any]:
            yield AIMessage("", tool_calls=[ToolCall(name="Answer", args=JSON, id="c")])

        assert list(parser.transform(messages())) == [JSON, AUSTEN]
        assert list(parser.transform(iter(['{"author": "Austen", ', '"year": 1815}'])))[-1] == AUSTEN

    def test_a_stream_of_whole_calls(self) -> None:
        calls = [ToolCall(name="note", args={"text": "x"}, id="a"), ToolCall(name="Answer", args=JSON, id="b")]
        whole = AIMessageChunk(content="", tool_calls=calls)
        assert list(BrixOutputParser(Answer).transform(iter([whole]))) == [JSON, AUSTEN]

    def test_nothing_is_no_answer(self) -> None:
        with pytest.raises(OutputParserException):
            list(BrixOutputParser(Answer).transform(iter(())))
        with pytest.raises(OutputParserException):
            BrixOutputParser(Answer).parse_result([])
        assert BrixOutputParser(Answer).parse_result([], partial=True) is None

    @pytest.mark.parametrize("value", [7, None, JSON])
    def test_what_nobody_wrote_is_not_read(self, value: Any) -> None:
        with pytest.raises(TypeError, match="reads text, messages and generations, got"):
            BrixOutputParser(Answer).parse(value)

    def test_the_question_is_told_where_it_is_known(self, chat: Make, server: DemoServer) -> None:
        server.default = JsonReply(JSON)
        parser = BrixOutputParser(Answer).with_llm(chat())
        assert parser.parse_with_prompt("Austen", PROMPT.invoke(ASKED)) == AUSTEN
        sent = [message["content"] for message in server.requests[0].body["messages"]]
        assert sent[:3] == [ASKED["format"], "Who wrote Emma?", "Austen"]


class TestInTheParsersOfLangChain:
    """`OutputFixingParser` and its kin around a parser of ours, and a parser of ours in their place."""

    async def test_an_answer_is_fixed(self, chat: Make, server: DemoServer) -> None:
        model = guarded(chat())
        fixing: Any = OutputFixingParser.from_llm(parser=BrixOutputParser(Answer), llm=model)
        server.default = JsonReply(JSON)
        assert fixing.parse("It was Austen.") == await fixing.aparse("It was Austen.") == AUSTEN
        for record in server.requests:  # it is told the schema, the answer, and what is wrong
            (message,) = record.body["messages"]
            assert all(told in message["content"] for told in ("JSON Schema", "It was Austen.", "no valid Answer"))
        assert len(model.get_traces()) == server.stats.requests == 2

    @pytest.mark.parametrize("kind", [RetryOutputParser, RetryWithErrorOutputParser])
    async def test_the_question_is_asked_again(self, kind: Any, chat: Make, server: DemoServer) -> None:
        model = guarded(chat())
        retrying: Any = kind.from_llm(parser=BrixOutputParser(Answer), llm=model, max_retries=2)
        prompt = PROMPT.invoke(ASKED)
        server.script(Reply("Jane."), JsonReply(JSON), JsonReply(JSON))
        assert retrying.parse_with_prompt("Austen", prompt) == AUSTEN
        assert await retrying.aparse_with_prompt("Austen", prompt) == AUSTEN
        assert len(model.get_traces()) == server.stats.requests == 3
        server.default = Reply("Jane.")
        with pytest.raises(OutputParserException):
            retrying.parse_with_prompt("Austen", prompt)

    def test_copies_are_parsers(self) -> None:
        parser = BrixOutputParser(Answer)
        for twin in (copy.deepcopy(parser), pickle.loads(pickle.dumps(parser)), parser.model_copy()):
            assert twin.parse(json.dumps(JSON)) == AUSTEN


async def test_a_hundred_answers_at_once_are_healed_each_by_its_own(chat: Make, server: DemoServer) -> None:
    model = guarded(chat())
    parser = BrixOutputParser(Answer).with_llm(model)
    server.default = JsonReply(JSON)
    answers = await asyncio.gather(*(parser.ainvoke(f"It was Austen, I say for time {n}.") for n in range(100)))
    assert answers == [AUSTEN] * 100
    echoes = {record.body["messages"][1]["content"] for record in server.requests}
    assert len(echoes) == len(model.get_traces()) == server.stats.requests == 100


async def test_a_heal_that_is_cancelled_is_charged_and_asked_no_more(chat: Make, server: DemoServer) -> None:
    model = guarded(chat())
    server.script(Reply("It was Austen."), SlowFirstToken(5.0))
    task = asyncio.create_task((chat() | BrixOutputParser(Answer).with_llm(model)).ainvoke("Who?"))
    while server.stats.requests < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (trace,) = model.get_traces()
    assert trace["outcome"] == "cancelled"
    assert model.context.session_cost_usd > 0
    assert server.wait_until_idle()
    assert server.stats.requests == 2


class Typed(TypedDict):
    author: str
    year: int


@dataclass
class Plain:
    author: str
    year: int


class TestSchemas:
    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            (Typed, JSON),
            (Plain, Plain("Austen", 1815)),
            ({"title": "Answer", "type": "object", "properties": {"author": {}, "year": {}}}, JSON),
        ],
    )
    def test_whatever_describes_an_answer(self, schema: Any, value: Any) -> None:
        parser: BrixOutputParser[Any] = BrixOutputParser(schema)
        assert parser.parse(json.dumps(JSON)) == value
        assert "JSON Schema" in parser.get_format_instructions()
        assert parser.OutputType is schema or isinstance(schema, dict)

    def test_graphs_and_schemas_can_be_drawn(self, chat: Make) -> None:
        chain = PROMPT | chat() | BrixOutputParser(Answer)
        assert "BrixOutputParser" in chain.get_graph().draw_mermaid()
        assert chain.output_schema.model_json_schema()["properties"].keys() == {"author", "year"}

    def test_bad_ones_are_told_at_once(self) -> None:
        with pytest.raises(BrixConfigurationError, match="response_schema"):
            BrixOutputParser(int)
        with pytest.raises(BrixConfigurationError, match="max_schema_retries"):
            BrixOutputParser(Answer, max_schema_retries=-1)
        with pytest.raises(BrixConfigurationError, match="max_schema_retries"):
            BrixOutputParser(Answer).with_llm(None, max_schema_retries=-1)  # type: ignore[arg-type]
        for no_model in (None, "gpt-4o", Answer):
            with pytest.raises(BrixConfigurationError, match="llm must be a model"):
                BrixOutputParser(Answer).with_llm(no_model)  # type: ignore[arg-type]
        with pytest.raises(BrixConfigurationError, match="llm must be a model"):
            BrixOutputParser(Answer, llm=7)

    @pytest.mark.parametrize("way", ["invoke", "ainvoke"])
    async def test_who_heals_must_answer_in_words(self, way: str, chat: Make, server: DemoServer) -> None:
        structured = chat().with_structured_output(Answer)
        server.default = JsonReply(JSON)
        with pytest.raises(BrixConfigurationError, match="gave a Answer"):
            await ask(BrixOutputParser(Answer).with_llm(structured), way, "Austen")
