"""The two tracks of a regulated call: circuit breakers, which decide at once, and risk, which decides how often to ask.

A breaker that is met stops the call; with a retrieval provider, the model is asked with what was retrieved as its only
ground. Otherwise the risk decides how many answers are asked for. Several are compared, and what they tell about the
question decides what is done: nothing, retrieving, resolving a contradiction, or telling the distribution.

Everything that asks the model goes through the inner guards. What is asked beside the first answers is given up for the
best answer at hand when it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from brix_core.call import CallRequest, CallResponse
from brix_core.clock import Clock
from brix_core.embedding import Embedder, LexicalEmbedder, as_embedder
from brix_core.errors import BrixConfigurationError, BrixGuardError, BrixInternalError, BrixRegulatedError
from brix_core.failures import is_control_flow
from brix_core.flow import Effect, Flow, Proceed, Retrieve, Run
from brix_core.regulated.judging.actions import action_for, distribute, ground, resolve, unverified
from brix_core.regulated.judging.case import RESULT, RETRIEVAL_SCORE, Case
from brix_core.regulated.judging.reading import read_inputs
from brix_core.regulated.judging.result import ActionTaken, UncertaintyType
from brix_core.regulated.judging.risk import risk_of
from brix_core.regulated.judging.sampling import sample, samples_of, tier_of
from brix_core.regulated.judging.scores import Scores
from brix_core.regulated.judging.uncertainty import Answer, Assessment, assess, unanimous
from brix_core.regulated.output.output_guard import LONG, OutputGuard
from brix_core.regulated.rules.compiled import CompiledSpec
from brix_core.regulated.rules.hits import Hit, Inputs
from brix_core.retrieval.results import RetrievalResult, RetrievedDocument, checked_score

if TYPE_CHECKING:
    from brix_core.retrieval.results import RetrievalProvider

Patience = Callable[[CallRequest], float | None]
"""How many seconds a call may wait for a retrieval; None without a limit."""

LEAST_SCORE: Final = 0.5
"""Score of a retrieval on which an answer may rest: what is less alike is not about the question."""

LONGEST_RETRIEVAL: Final = 30.0
"""Seconds a retrieval may take where no time limit is set."""

_Answered = Generator[Effect, Any, CallResponse]


class Tracks:
    """Decides about the calls of a pipeline.

    Args:
        compiled: The spec, made ready.
        clock: The time.
        provider: Finds what an answer can rest on.
        embedder: Compares answers; what `as_embedder` takes.
        output: Looks at answers.
        patience: How long a retrieval may take.
    """

    def __init__(
        self,
        compiled: CompiledSpec,
        clock: Clock,
        *,
        provider: RetrievalProvider | None = None,
        embedder: object = None,
        output: OutputGuard | None = None,
        patience: Patience = lambda request: None,
    ) -> None:
        self.spec = compiled.spec
        self.scores = Scores()
        self._compiled = compiled
        self._clock = clock
        self._provider = provider
        self._embedder: Embedder | None = None if embedder is None else as_embedder(embedder)
        self._output = output
        self._patience = patience
        self._everything = any(
            rule.scope == "conversation" for rule in (*self.spec.circuit_breakers, *self.spec.risk_signals)
        )

    def flow(self, request: CallRequest, proceed: Proceed) -> Flow:
        """Guard one call."""
        case = yield from self._opened(request)
        try:
            return (yield from self._decided(case, proceed))
        except BrixGuardError as error:
            if (blocked := self._blocked_in(case, error)) is None:
                raise
            raise blocked from None

    def _decided(self, case: Case, proceed: Proceed) -> Flow:
        breaker = case.breaker
        if breaker is not None:
            return (yield from self._intervene(case, breaker, proceed))
        count = samples_of(tier_of(case.risk.score, self.spec.sampling_config), self.spec.sampling_config)
        response = yield from self._answer(case, case.request, proceed, count)
        return (yield from self._close(case, response, "passed" if count == 1 else "sampled"))

    def _opened(self, request: CallRequest) -> Generator[Effect, Any, Case]:
        """Look at the prompt."""
        started = self._clock.now()
        inputs = read_inputs(request.conversation.turns(), everything=self._everything)
        given = request.call.metadata.pop(RETRIEVAL_SCORE, None)
        score = None if given is None else checked_score(given, "retrieval_score")
        look = partial(self._look, inputs)
        texts = (*inputs.user_texts, *inputs.system_texts, *inputs.tool_arguments, *inputs.retrieved)
        off_loop = self._compiled.slow or sum(map(len, texts)) > LONG
        breakers, signals = (yield Run(look)) if off_loop else look()
        case = Case(
            decision_id=uuid4(),
            request=request,
            spec=self.spec,
            started=started,
            inputs=inputs,
            breakers=breakers,
            signals=signals,
            given_score=score,
            risk=risk_of(signals, score),
        )
        if self._output is not None:
            case.request = self._output.watched(request, query=case.inputs.query, context=case.context)
        return case

    def _look(self, inputs: Inputs) -> tuple[list[Hit], list[Hit]]:
        breakers = self._compiled.breakers(inputs)
        if any(hit.counts for hit in breakers):  # deterministic: no signal of the application's own is in its way
            return breakers, self._compiled.pattern_hits(self.spec.risk_signals, inputs)
        return breakers, self._compiled.signals(inputs)

    def _intervene(self, case: Case, breaker: Hit, proceed: Proceed) -> Flow:
        """A breaker is met: answer from what is retrieved, or refuse."""
        case.action = ActionTaken.FORCE_RETRIEVAL
        found = yield from self._retrieved(case)
        if found is None:
            error = case.refusal(breaker)
            case.decide("blocked")
            told = getattr(breaker.rule, "message", None) or breaker.rule.description
            self._store(case, told)
            raise error
        grounded = self._grounded(case, found)
        response = yield from self._answer(case, grounded, proceed, self.spec.sampling_config.circuit_breaker_samples)
        case.action = ActionTaken.FORCE_RETRIEVAL
        return (yield from self._close(case, response, "grounded"))

    def _answer(self, case: Case, request: CallRequest, proceed: Proceed, count: int) -> _Answered:
        """Ask once, or several times and do what the answers call for."""
        if count == 1:
            return (yield from proceed(request))
        sampled = yield from sample(request, proceed, count)
        case.asked = count
        case.answers = [Answer.of(one.response) for one in sampled.answers]
        for one in sampled.answers[1:]:
            case.bill(one.request, one.response)
        case.assessment = assessment = yield from self._assessed(case)
        best = partial(sampled.give, assessment.chosen)
        return (yield from self._act(case, request, proceed, best))

    def _assessed(self, case: Case) -> Generator[Effect, Any, Assessment]:
        """What the answers tell. One that is left of several tells nothing."""
        answers, query = case.answers, case.inputs.query
        if len(answers) == 1:
            return Assessment(UncertaintyType.EPISTEMIC, "unverified", ((0,),))
        agreed = unanimous(answers, query)
        if agreed is not None:
            return agreed
        try:
            found: Assessment = yield Run(lambda: assess(answers, query, self._embedding()))
        except BrixGuardError as error:
            case.details["embedder_failed"] = str(error)[:200]
            found = assess(answers, query, LexicalEmbedder())
        return found

    def _embedding(self) -> Embedder:
        if self._embedder is None:
            self._embedder = as_embedder()
        return self._embedder

    def _act(self, case: Case, request: CallRequest, proceed: Proceed, best: Callable[[], CallResponse]) -> _Answered:
        """Do what the answers call for; `best` gives the best of them, for when that is not possible."""
        assert case.assessment is not None
        action, template = action_for(case.assessment.kind, self.spec)
        drafts = [answer.text for answer in case.answers]
        case.action, case.template = action, template
        if action is ActionTaken.NONE:
            return best()
        if action is ActionTaken.FORCE_RETRIEVAL:
            found = (yield from self._retrieved(case)) if case.found is None else None
            if found is not None:
                return (yield from self._asked_again(case, self._grounded(case, found), proceed, best))
            case.needs_verification = True
            return best()
        if action is ActionTaken.CONFLICT_RESOLUTION:
            if case.assessment.has_majority:
                return best()
            turn = resolve(drafts, template)
        elif request.schema is not None:  # its form has no place for several answers; they are in the result
            return best()
        else:
            turn = distribute(drafts, template)
        again = request.evolve(conversation=request.conversation.adding(("user", turn)))
        return (yield from self._asked_again(case, again, proceed, best))

    def _asked_again(
        self, case: Case, request: CallRequest, proceed: Proceed, best: Callable[[], CallResponse]
    ) -> _Answered:
        """One more answer; the best one so far where there is none."""
        try:
            response = yield from proceed(request)
        except Exception as error:
            if request.call.streamed or _is_no_failure(error):
                raise
            case.details["asked_again"] = type(error).__name__
            case.needs_verification = True
            return best()
        case.bill(request, response)
        return response

    def _blocked_in(self, case: Case, error: BrixGuardError) -> BrixRegulatedError | None:
        """What to raise instead of an error that the output guard raised on a stream, or that tells what it blocks."""
        if self._output is None:
            return None
        if isinstance(error, BrixRegulatedError):  # one with a decision has been told of
            return None if error.decision_id else self._output_blocked(case, error)
        rule = self._output.blocks_error(error, query=case.inputs.query, context=case.context)
        if rule is None:
            return None
        return self._output_blocked(case, self._output.refusal(rule, case.request.call.partial_text))

    def _close(self, case: Case, response: CallResponse, decision: str) -> Flow:
        """Look at the answer, and tell of the decision."""
        found = None
        if self._output is not None:
            look = partial(self._output.analyze_response, response, query=case.inputs.query, context=case.context)
            found = (yield Run(look)) if self._output.slow or len(response.text) > LONG else look()
            if found.output_block_signal is not None:
                error = self._output.refusal(found.output_block_signal, case.request.call.partial_text)
                raise self._output_blocked(case, error, output_result=found)
        text = Answer.of(response).text if response.tool_calls else response.text.strip()
        case.decide(decision)
        if case.needs_verification:
            self._store(case, unverified(case.template, text), unverified_draft=text, output_result=found)
        else:
            self._store(case, text, output_result=found)
        return response

    def _output_blocked(self, case: Case, error: BrixRegulatedError, **more: Any) -> BrixRegulatedError:
        """The answer must not be shown: note it. Returns the error."""
        error.decision_id = str(case.decision_id)
        case.blocked_output = True
        case.decide("output_blocked", rule=error.rule)
        self._store(case, str(error), **more)
        return error

    def _store(self, case: Case, response: str, **more: Any) -> None:
        call = case.request.call
        balance = self.scores.note(call.session, case.decision_id, necessary=case.necessary, intervened=case.intervened)
        result = case.result(response, self._clock.now(), balance, **more)
        if self._output is not None and result.samples:  # the metadata is the consumer's too
            shown = self._output.without_blocked(result.samples, query=case.inputs.query, context=case.context)
            result = result.model_copy(update={"samples": shown})
        call.metadata[RESULT] = result

    def _grounded(self, case: Case, found: RetrievalResult) -> CallRequest:
        """The call with what was found as its only ground."""
        case.found = found
        case.risk = risk_of(case.signals, found.score)
        documents = [(document.source, document.text) for document in found.documents]
        return case.request.evolve(conversation=case.request.conversation.with_system(ground(documents)))

    def _retrieved(self, case: Case) -> Generator[Effect, Any, RetrievalResult | None]:
        """What is found for the query and may be used; None, and why, when that is nothing."""
        if self._provider is None:
            return None
        patience = self._patience(case.request)
        seconds = LONGEST_RETRIEVAL if patience is None else patience
        try:
            if seconds <= 0.0:
                raise TimeoutError("no time is left for a retrieval")
            result: RetrievalResult = yield Retrieve(self._provider, case.inputs.query, seconds)
            usable = partial(self._usable, case, _documents(result))
            documents: list[RetrievedDocument] = (yield Run(usable)) if self._compiled.slow else usable()
        except Exception as error:
            if is_control_flow(error):
                raise
            case.retrieval_error = f"the retrieval failed ({type(error).__name__}: {error})"[:500]
            return None
        if not documents:
            case.retrieval_error = f"nothing that may be used was retrieved (a score of {LEAST_SCORE} is needed)"
            return None
        return RetrievalResult(
            content="\n\n".join(document.text for document in documents),
            score=result.score,
            sources=_sources(result, documents),
            documents=documents,
        )

    def _usable(self, case: Case, documents: Sequence[RetrievedDocument]) -> list[RetrievedDocument]:
        """Those that no breaker for retrieved documents is met by."""
        system = case.inputs.system_texts

        def is_stopped(document: RetrievedDocument) -> bool:
            hits = self._compiled.breakers(Inputs("", system_texts=system, retrieved=(document.text,)))
            return any(hit.counts for hit in hits)

        usable = [document for document in documents if not is_stopped(document)]
        if len(usable) < len(documents):
            case.details["documents_dropped"] = len(documents) - len(usable)
        return usable


def _documents(result: RetrievalResult) -> list[RetrievedDocument]:
    """What was found, piece by piece; as one piece where the provider does not tell them apart."""
    documents = result.documents or (
        RetrievedDocument(text=result.content, score=result.score, source=", ".join(result.sources)),
    )
    return [document for document in documents if document.text.strip() and result.score >= LEAST_SCORE]


def _sources(result: RetrievalResult, documents: Sequence[RetrievedDocument]) -> Sequence[str]:
    """Where the documents in use come from."""
    if not result.documents:
        return result.sources
    return tuple(dict.fromkeys(document.source for document in documents if document.source)) or result.sources


def _is_no_failure(error: Exception) -> bool:
    """Whether giving another answer instead would hide what must be seen."""
    return isinstance(error, BrixConfigurationError | BrixInternalError | BrixRegulatedError) or is_control_flow(error)


__all__ = ["Patience", "Tracks"]
