from __future__ import annotations
import asyncio, math
from typing import Any
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import *
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy, AutoStrategy
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from brix_core.demo import *
from brix_core.errors import *
from brix_core.store import MemoryStore
from brix_langchain import *
from tests.langchain.support import *
from tests.langchain.test_middleware import *
from tests.langchain.test_middleware import run as mrun
from tests.langchain.test_agent_executor import executor, PROMPT, REACT
from langchain_classic.agents import AgentExecutor, create_react_agent, create_tool_calling_agent

for n in list(globals()):
    if n.startswith("Test") or n.startswith("test_"): del globals()[n]

def show(what, f):
    try:
        print(what, "->", repr(f()))
    except BaseException as e:
        print(what, "!!", type(e).__module__, type(e).__name__, str(e)[:300])

def test_options():
    for o in [dict(stream_mode="validated"), dict(inject_schema_in_prompt=True), dict(max_schema_retries=-1), dict(max_schema_retries=True),
              dict(max_tool_calls="3"), dict(max_tool_calls=True), dict(max_tool_calls={1:2}), dict(max_tool_calls=[1]), dict(max_model_calls="x"), dict(on_loop=["end"]),
              dict(on_limit=None), dict(session_id="x"), dict(max_healing_seconds=3.), dict(tool_loop_detection=False, on_loop="end"), dict(diversity_attempts=3), dict(tool_loop_detection=False, diversity_attempts=2), dict(on_timeout="return_partial", per_call_timeout=3), dict(max_tool_calls={}), dict(fallbacks=["x"]), dict(context_summary_model=3,context_strategy="summarize",max_context_tokens=10000), dict(max_cost_usd="1")]:
        show(("MW", o), lambda: BrixMiddleware(**o))
        
def test_cache_bad(chat):
    for c in ["x", {}, BrixCache, 7]:
        show(("cache", c), lambda: BrixCache(c))
    show("upd", lambda: (lambda c: (c.update("p","m",[]), c.lookup("p","m")))(BrixCache()))
    for r in ["60", None, float("nan"), math.inf, True, -1, 1e308, 1e-300, 10**400]:
        show(("rl", r), lambda: BrixRateLimiter(r))
    show("rlstore", lambda: BrixRateLimiter(60, store="redis://"))
    show("rlclock", lambda: BrixRateLimiter(60, clock=3))
    show("rlname", lambda: BrixRateLimiter(60, name=3))
    show("rlb", lambda: BrixRateLimiter(60, burst_capacity="3"))
    show("rlb", lambda: BrixRateLimiter(60, burst_capacity=10**400).acquire())
    show("rlb", lambda: BrixRateLimiter(1e-300).acquire())
    for p in [None, 7, "x", list, {}, {"type": 3}]:
        show(("parser", p), lambda: BrixOutputParser(p))
    show("with_llm 7", lambda: BrixOutputParser(Answer).with_llm(7))
    show("llm=7", lambda: BrixOutputParser(Answer, llm="gpt"))
    for v in [7, None, [], {"a": 1}, [AIMessage("x")]]:
        show(("parse", v), lambda: BrixOutputParser(Answer).invoke(v))
        show(("parse()", v), lambda: BrixOutputParser(Answer).parse(v))
    show("parse_result []", lambda: BrixOutputParser(Answer).parse_result([]))
    for o in [dict(max_calls_per_run=0), dict(max_calls_per_run="3"), dict(max_tool_calls_per_run=True), dict(max_retries=1), dict(foo=1), dict(total_timeout=-1)]:
        show(("cb", o), lambda: BrixCallbackHandler(**o))
    for o in [dict(on_loop=None), dict(diversity_attempts=-1), dict(tool_loop_detection="yes"), dict(exact_loop_threshold=1), dict(response_schema=Answer), dict(tool_loop_detection=False, on_loop="raise")]:
        show(("ex", o), lambda: guard_agent_executor(executor(chat()), **o))

async def test_auto(chat, server):
    for model in ("gpt-4o-mini", "gpt-4o"):
        for fmt in (Answer, ToolStrategy(Answer), ProviderStrategy(Answer)):
            bodies = []
            for mw in ([], [guards(unknown_price="free")]):
                server.reset()
                server.script(JsonReply({"author": "Austen"}) if fmt is not None else Reply("x"))
                agent = create_agent(chat(model=model), [search], response_format=fmt, middleware=mw)
                try:
                    a = await agent.ainvoke(QUESTION)
                    print(model, fmt, a.get("structured_response"))
                except Exception as e:
                    print(model, fmt, type(e), e)
                bodies.append({k: v for k, v in server.requests[0].body.items()})
            if bodies[0] != bodies[1]:
                print("DIFF", {k: (bodies[0].get(k), bodies[1].get(k)) for k in bodies[0].keys() | bodies[1].keys() if bodies[0].get(k) != bodies[1].get(k)})

async def test_orders(chat, server):
    makes = {
        "modelcall": lambda: ModelCallLimitMiddleware(run_limit=2, exit_behavior="end"),
        "modelcallerr": lambda: ModelCallLimitMiddleware(run_limit=2, exit_behavior="error"),
        "toolcont": lambda: ToolCallLimitMiddleware(run_limit=1, exit_behavior="continue"),
        "toolend": lambda: ToolCallLimitMiddleware(run_limit=1, exit_behavior="end"),
        "toolerr": lambda: ToolCallLimitMiddleware(run_limit=1, exit_behavior="error"),
        "ctx": lambda: ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=10, keep=0)]),
        "todo": lambda: TodoListMiddleware(),
        "pii": lambda: PIIMiddleware("email"),
        "selector": lambda: LLMToolSelectorMiddleware(model=chat(), max_tools=1),
        "retry": lambda: ModelRetryMiddleware(max_retries=1, initial_delay=0),
        "sum": lambda: SummarizationMiddleware(chat(), trigger=("messages", 5), keep=("messages", 2)),
        "emul": lambda: LLMToolEmulator(model=chat()),
    }
    for name, mk in makes.items():
        for first in (True, False):
          for way in ("invoke", "ainvoke"):
            server.reset()
            server.default = SEARCH
            mw = guards(on_loop="end", exact_loop_threshold=4)
            order = [mw, mk()] if first else [mk(), mw]
            agent = create_agent(chat(), [search, lend], middleware=order, checkpointer=InMemorySaver())
            try:
                ms = await run(agent, way, thread="t")
                end = [m.type for m in ms], ms[-1].text[:90]
            except Exception as e:
                end = type(e).__name__, str(e)[:120]
            bad = ""
            try:
                assert_all_counted(mw, server, server.stats.requests)
            except AssertionError as e:
                bad = "UNEQUAL " + str(sum(len(t["attempts"]) for t in mw.get_traces())) + " " + str(e)[:100]
            print(name, "first" if first else "last", way, server.stats.requests, end, bad)

async def test_executor_iter_timeout(chat, server):
    server.default = SlowFirstToken(5.0)
    agent = guard_agent_executor(executor(chat()), per_call_timeout=0.1)
    try:
        async for s in agent.iter(QUESTION2):
            print(s)
    except Exception as e:
        print("async iter", type(e).__name__, type(e).__mro__)
    try:
        for s in agent.iter(QUESTION2):
            print(s)
    except Exception as e:
        print("iter", type(e).__name__)
QUESTION2 = {"input": "Who?"}
async def test_executor_more(chat, server):
    server.default = SEARCH
    agent = guard_agent_executor(executor(chat()), on_loop="raise")
    try:
        agent.with_retry(stop_after_attempt=3, wait_exponential_jitter=False).invoke(QUESTION2)
    except Exception as e:
        print("with_retry", type(e).__name__, server.stats.requests)
    try:
        print(agent.with_fallbacks([RunnableLambda(lambda x: {"output": "over"})]).invoke(QUESTION2))
    except Exception as e:
        print("with_fallbacks", type(e).__name__, server.stats.requests)
    server.reset()
    server.default = SEARCH
    agent = guard_agent_executor(executor(chat(), return_intermediate_steps=True, max_iterations=2), on_loop="raise", **{"max_cost_usd":1.0,"prices":{MODEL:RATES},"store":MemoryStore()})
    print(agent.invoke(QUESTION2), server.stats.requests, len(agent.get_traces()))
    server.reset()
    server.default = SEARCH
    for method in ("force", "generate"):
        agent = guard_agent_executor(executor(chat(), early_stopping_method=method, max_iterations=2), on_loop="raise", max_retries=1)
        show(method, lambda: agent.invoke(QUESTION2))
    import pickle
    print(agent.model_dump().keys() if 0 else "")
    from langchain_classic.output_parsers import OutputFixingParser, RetryOutputParser, RetryWithErrorOutputParser
    for cls in (OutputFixingParser, RetryOutputParser, RetryWithErrorOutputParser):
        server.reset()
        server.script(JsonReply({"author": "Austen"}))
        p = cls.from_llm(parser=BrixOutputParser(Answer), llm=chat())
        if cls is OutputFixingParser:
            show(cls, lambda: p.parse("nonsense"))
        else:
            show(cls, lambda: p.parse_with_prompt("nonsense", PROMPT.invoke({"input": "Who?"})))
    show("pickle", lambda: pickle.loads(pickle.dumps(BrixOutputParser(Answer))).parse('{"author":"x"}'))
    show("deepcopy", lambda: __import__("copy").deepcopy(BrixOutputParser(Answer)).parse('{"author":"x"}'))
