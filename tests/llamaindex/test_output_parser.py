"""The output parser: in programs, prompts and query engines, plain and streamed."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from pydantic import BaseModel

from brix_core import BrixBudgetError, BrixConfigurationError, BrixSchemaError
from brix_core.demo import DemoServer, Reply
from brix_core.structured.response_schema import INSTRUCTIONS_HEADING
from brix_llamaindex import BrixOutputParser, guard
from tests.llamaindex.conftest import MODEL, Make
from tests.llamaindex.hooks import attempts
from tests.support.words import FITTING, MUSEUM
from tests.support.words_llamaindex import WordEmbedding


class City(BaseModel):
    """A city."""

    name: str
    inhabitants: int


OSLO = City(name="Oslo", inhabitants=700_000)
WRITTEN = "Sure! {'name': 'Oslo', 'inhabitants': 700000,}"
WRONG = '{"name": "Oslo", "inhabitants": "many"}'
PROMPT = "Describe {city}."


@pytest.fixture
def index() -> VectorStoreIndex:
    documents = [Document(text=text) for text in MUSEUM.values()]
    return VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding())


def asked_for_json(server: DemoServer) -> list[int]:
    """How often each request tells the model the format."""
    return [str(record.body["messages"]).count(INSTRUCTIONS_HEADING) for record in server.requests]


def test_an_instance_or_its_json_is_read_out_of_an_answer() -> None:
    assert BrixOutputParser(City).parse(WRITTEN) == OSLO
    assert BrixOutputParser(City, gives="json").parse(WRITTEN) == '{"name":"Oslo","inhabitants":700000}'
    assert BrixOutputParser(City.model_json_schema()).parse(WRITTEN) == OSLO.model_dump()


def test_an_answer_that_does_not_fit_says_what_is_wrong() -> None:
    with pytest.raises(BrixSchemaError, match=r"\$\.inhabitants.*give the parser an llm") as caught:
        BrixOutputParser(City).parse(WRONG)
    ((text, problems, _),) = caught.value.attempts
    assert text == WRONG
    assert problems[0][0] == "$.inhabitants"


@pytest.mark.parametrize("wrong", [{"schema": int}, {"llm": "gpt-4o"}, {"max_schema_retries": -1}, {"gives": "dict"}])
def test_what_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BrixConfigurationError):
        BrixOutputParser(**{"schema": City, **wrong})


def test_a_parser_with_an_llm_heals_and_the_heal_is_counted(openai_like: Make, server: DemoServer) -> None:
    server.script(Reply("I do not know."), Reply(WRITTEN))
    llm = guard(openai_like())
    assert BrixOutputParser(City, llm=llm).parse(WRONG) == OSLO
    assert attempts(llm) == server.stats.requests == 2
    assert WRONG in str(server.requests[0].body["messages"])
    assert "I do not know." in str(server.requests[1].body["messages"])


def test_a_parser_gives_up_with_all_answers(openai_like: Make, server: DemoServer) -> None:
    server.default = Reply("I do not know.")
    with pytest.raises(BrixSchemaError) as caught:
        BrixOutputParser(City, llm=guard(openai_like()), max_schema_retries=1).parse(WRONG)
    assert [attempt.text for attempt in caught.value.attempts] == [WRONG, "I do not know."]
    assert server.stats.requests == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_program_gives_an_instance(openai_like: Make, server: DemoServer, asynchronous: bool) -> None:
    server.default = Reply(WRITTEN)
    llm = guard(openai_like())
    program = LLMTextCompletionProgram.from_defaults(
        output_parser=BrixOutputParser(City), output_cls=City, prompt_template_str=PROMPT, llm=llm
    )
    found = await program.acall(city="Oslo") if asynchronous else program(city="Oslo")
    assert found == OSLO
    assert asked_for_json(server) == [1]
    assert attempts(llm) == server.stats.requests == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_program_whose_parser_has_an_llm_heals(
    openai_like: Make, server: DemoServer, asynchronous: bool
) -> None:
    server.script(Reply(WRONG), Reply(WRITTEN))
    llm = guard(openai_like(), max_cost_usd=1.0, prices={MODEL: (1e-6, 1e-6)})
    program = LLMTextCompletionProgram.from_defaults(
        output_parser=BrixOutputParser(City, llm=llm), output_cls=City, prompt_template_str=PROMPT, llm=llm
    )
    found = await program.acall(city="Oslo") if asynchronous else program(city="Oslo")
    assert found == OSLO
    assert attempts(llm) == server.stats.requests == 2
    assert "inhabitants" in str(server.requests[1].body["messages"][-1])
    assert llm.brix.context.session_cost_usd > 0.0


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_heal_that_is_not_affordable_is_not_made(
    openai_like: Make, server: DemoServer, asynchronous: bool
) -> None:
    server.default = Reply(WRONG)
    # The first call leaves too little for a second one.
    llm = guard(
        openai_like(max_tokens=100), max_cost_usd=0.0006, prices={MODEL: (1e-6, 1e-6)}, budget_clamp_output=False
    )
    program = LLMTextCompletionProgram.from_defaults(
        output_parser=BrixOutputParser(City, llm=llm, max_schema_retries=9),
        output_cls=City,
        prompt_template_str=PROMPT,
        llm=llm,
    )
    with pytest.raises(BrixBudgetError):
        await program.acall(city="Oslo") if asynchronous else program(city="Oslo")
    assert 0 < attempts(llm) == server.stats.requests < 10
    assert llm.brix.context.session_cost_usd <= 0.0006


def test_a_prompt_template_formats(openai_like: Make, server: DemoServer) -> None:
    prompt = PromptTemplate(PROMPT, output_parser=BrixOutputParser(City))
    assert prompt.format(city="{Oslo}").startswith("Describe {Oslo}.\n\n" + INSTRUCTIONS_HEADING)
    llm = guard(openai_like(output_parser=BrixOutputParser(City, gives="json")))
    server.default = Reply(WRITTEN)
    assert llm.predict(prompt, city="Oslo") == '{"name":"Oslo","inhabitants":700000}'
    assert asked_for_json(server) == [1]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_query_engine_answers_in_json(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    server.default = Reply(WRITTEN)
    llm = guard(openai_like(output_parser=BrixOutputParser(City, gives="json")))
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    response = await engine.aquery(FITTING) if asynchronous else engine.query(FITTING)
    assert City.model_validate_json(str(response)) == OSLO
    assert attempts(llm) == server.stats.requests == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_query_engine_whose_parser_has_an_llm_heals(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    server.script(Reply(WRONG), Reply(WRITTEN))
    healer = guard(openai_like())
    llm = guard(openai_like(output_parser=BrixOutputParser(City, gives="json", llm=healer)))
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    response = await engine.aquery(FITTING) if asynchronous else engine.query(FITTING)
    assert City.model_validate_json(str(response)) == OSLO
    assert (attempts(llm), attempts(healer)) == (1, 1)
    assert server.stats.requests == 2


# --- streamed ----------------------------------------------------------------------------------------


async def streamed(llm: Any, prompt: Any, asynchronous: bool) -> str:
    if asynchronous:
        return "".join([token async for token in await llm.astream(prompt, city="Oslo")])
    return "".join(llm.stream(prompt, city="Oslo"))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("of_the_prompt", [False, True])
@pytest.mark.parametrize("is_chat_model", [False, True])
async def test_a_guarded_llm_streams_with_a_parser(
    openai_like: Make, server: DemoServer, is_chat_model: bool, of_the_prompt: bool, asynchronous: bool
) -> None:
    server.default = Reply(WRITTEN)
    parser = BrixOutputParser(City)
    fields = {"max_tokens": 200, "is_chat_model": is_chat_model, "is_function_calling_model": is_chat_model}
    llm = guard(openai_like(**fields, output_parser=None if of_the_prompt else parser))
    prompt = PromptTemplate(PROMPT, output_parser=parser if of_the_prompt else None)
    assert await streamed(llm, prompt, asynchronous) == WRITTEN
    assert attempts(llm) == server.stats.requests == 1
    assert str(server.requests[0].body).count(INSTRUCTIONS_HEADING) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_that_does_not_fit_fails_at_its_end(
    openai_like: Make, server: DemoServer, asynchronous: bool
) -> None:
    server.default = Reply(WRONG)
    llm = guard(openai_like(output_parser=BrixOutputParser(City)))
    with pytest.raises(BrixSchemaError) as caught:
        await streamed(llm, PromptTemplate(PROMPT), asynchronous)
    assert caught.value.partial == WRONG
    assert attempts(llm) == server.stats.requests == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_that_is_held_back_is_healed(openai_like: Make, server: DemoServer, asynchronous: bool) -> None:
    server.script(Reply(WRONG), Reply(WRITTEN))
    bare = openai_like(output_parser=BrixOutputParser(City))
    llm = guard(bare, response_schema=City, stream_mode="validated")
    assert (
        City.model_validate_json(
            BrixOutputParser(City, gives="json").parse(await streamed(llm, PromptTemplate(PROMPT), asynchronous))
        )
        == OSLO
    )
    assert attempts(llm) == server.stats.requests == 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_streaming_query_engine_is_served(
    openai_like: Make, server: DemoServer, index: VectorStoreIndex, asynchronous: bool
) -> None:
    server.default = Reply(WRITTEN)
    llm = guard(openai_like(output_parser=BrixOutputParser(City)))
    engine: Any = index.as_query_engine(llm=llm, similarity_top_k=1, streaming=True)
    if asynchronous:
        text = "".join([part async for part in (await engine.aquery(FITTING)).async_response_gen()])
    else:
        text = "".join(engine.query(FITTING).response_gen)
    assert text == WRITTEN
    assert attempts(llm) == server.stats.requests == 1


async def test_what_is_not_ours_is_left_to_llama_index() -> None:
    plain, other = MockLLM(), guard(MockLLM())
    plain.output_parser = BrixOutputParser(City)
    other.output_parser = PydanticOutputParser(output_cls=City)
    for llm in (plain, other):
        for asynchronous in (False, True):
            with pytest.raises(NotImplementedError):
                await streamed(llm, PromptTemplate(PROMPT), asynchronous)
    assert await streamed(guard(MockLLM()), PromptTemplate(PROMPT), True) == "Describe Oslo."
