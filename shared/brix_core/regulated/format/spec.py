"""The format of a spec: what a regulated domain watches for, and what is done about it.

Every model is frozen and refuses fields it does not know; descriptions of fields are the documentation of the format
and end up in its JSON Schema (`brix_core.regulated.format.spec_schema`).

Specs are read by `brix_core.regulated.format.loading`, which names file and line of everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo, model_validator

from brix_core.regulated.format.consistency import Finding, inconsistencies

Scope = Literal["last_user", "conversation"]
ExcludeFrom = Literal["system", "query"]
Place = Literal["messages", "tool_arguments", "retrieved"]
Category = Literal["registered", "universal"]

Name = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$", max_length=80),
]
Line = Annotated[str, StringConstraints(strict=True, pattern=r"\S", max_length=2_000)]
Pattern = Annotated[str, StringConstraints(strict=True, pattern=r"\S", max_length=400)]
Text = Annotated[str, StringConstraints(strict=True, pattern=r"\S", max_length=20_000)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Samples = Annotated[int, Field(strict=True, ge=1, le=20)]
Flag = Annotated[bool, Field(strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelCompatibility(_Part):
    """What is known of one family of models under this spec."""

    model_family: Line = Field(description="Beginning of the names of the models it is about, for example gpt-4o.")
    status: Literal["verified", "community", "untested", "unknown"] = Field(
        default="untested", description="Who has tried the spec on it: its authors, its users, or nobody."
    )
    min_version: Line | None = Field(default=None, description="The first version this holds for.")
    notes: str = Field(default="", description="Anything a user of this family should know.", max_length=2_000)


class Metadata(_Part):
    """What the spec is."""

    name: Name = Field(description="Name of the spec; letters, digits, '_', '-' and '.'.")
    version: Line = Field(
        default="0.0.0", description="Version of the spec, in quotes; it stands in every result and trace."
    )
    domain: Line = Field(default="general", description="The regulated domain.")
    description: str = Field(default="", description="What the spec is for.", max_length=2_000)
    model_compatibility: tuple[ModelCompatibility, ...] = Field(
        default=(), description="What is known of families of models under this spec."
    )


class Defaults(_Part):
    """What a rule has when it does not say otherwise."""

    scope: Scope = Field(default="last_user", description="Which of the user's messages are looked at.")
    exclude_from: ExcludeFrom = Field(
        default="system", description="Whose words may lower a rule: the system's only, or the user's own too."
    )
    applies_to: tuple[Place, ...] = Field(
        default=("messages", "tool_arguments"), description="Where is looked, beside the messages.", min_length=1
    )


class Examples(_Part):
    """Texts by whose meaning a rule is recognised, through an embedder."""

    positive: tuple[Line, ...] = Field(description="Texts the rule is meant for.", min_length=1)
    negative: tuple[Line, ...] = Field(default=(), description="Texts that look like it and are harmless.")
    threshold: Share = Field(
        default=0.5, description="The score, in [0, 1], from which on a text counts; `brix calibrate` finds it."
    )


class Rule(_Part):
    """What all rules have."""

    name: Name = Field(description="Name of the rule, unique in the spec; letters, digits, '_', '-' and '.'.")
    description: Line = Field(description="One plain sentence: what the rule is there to catch.")
    patterns: tuple[Pattern, ...] = Field(
        default=(),
        description="Words and phrases. '...' is a gap of up to 6 words, (a|b) alternatives, =word exactly that word.",
    )
    examples: Examples | None = Field(default=None, description="Examples, matched by meaning.")


class InputRule(Rule):
    """A rule about what is asked."""

    exclude_context: tuple[Pattern, ...] = Field(
        default=(), description="Phrases that lower this rule where they stand in what exclude_from names."
    )
    exclude_from: ExcludeFrom = Field(
        default="system",
        description="Where exclude_context counts: in system messages only, or in the user's own words as well.",
    )
    scope: Scope = Field(
        default="last_user", description="The user's last message, or all that the user said in the conversation."
    )
    applies_to: tuple[Place, ...] = Field(
        default=("messages", "tool_arguments"),
        description="Where is looked: messages, arguments of tool calls, retrieved documents.",
        min_length=1,
    )


class CircuitBreaker(InputRule):
    """Stops a call, whatever its risk score."""

    message: Line | None = Field(default=None, description="What the user is told instead of an answer.")


class RiskSignal(InputRule):
    """Raises the risk of a call, and with it the number of samples."""

    weight: Share = Field(description="How much it raises the risk, in [0, 1].")
    category: Category = Field(
        default="registered", description="registered: the highest weight counts; universal: weights add up, x 0.6."
    )


class OutputSignal(Rule):
    """Something an answer must not say, or that raises its risk."""

    weight: Share = Field(description="How much it raises the risk of the answer, in [0, 1].")
    category: Category = Field(default="registered", description="As for risk signals.")
    signal_type: Literal["risk", "block"] = Field(
        default="risk", description="risk: adds to the answer's risk score; block: the answer is not shown."
    )
    exclude_context: tuple[Pattern, ...] = Field(
        default=(), description="Phrases that lower this rule where they stand in what exclude_from names."
    )
    exclude_from: ExcludeFrom = Field(
        default="system",
        description="Where exclude_context counts: in system messages only, or in the question as well; never in the "
        "answer.",
    )
    message: Line | None = Field(default=None, description="What the user is told instead of the answer.")


class ActionConfig(_Part):
    """What is done about an uncertainty."""

    action: Literal["none", "force_retrieval", "conflict_resolution", "distribution_response"] = Field(
        description="The action."
    )
    message_template: str = Field(default="", description="What goes with the answer.", max_length=4_000)
    force_retrieval: Flag = Field(default=False, description="Whether an answer has to be looked up.")


class UncertaintyTypeDef(_Part):
    """One kind of uncertainty, and what is done about it."""

    name: Literal["certain", "epistemic", "contradictory", "open_ended"] = Field(description="The kind.")
    description: Line = Field(description="One plain sentence: when it is this kind.")
    action_config: ActionConfig = Field(description="What is done about it.")


class SamplingConfig(_Part):
    """How often the model is asked, by risk."""

    low_threshold: Share = Field(default=0.4, description="Risk below this is low.")
    medium_threshold: Share = Field(default=0.7, description="Risk below this is medium, from it on high.")
    low_samples: Samples = Field(default=1, description="Samples at low risk.")
    medium_samples: Samples = Field(default=2, description="Samples at medium risk.")
    high_samples: Samples = Field(default=3, description="Samples at high risk.")
    circuit_breaker_samples: Samples = Field(
        default=3, description="Samples when a circuit breaker was hit and the answer rests on what was retrieved."
    )
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] = Field(
        default=0.7, description="Temperature of samples, where there is more than one."
    )
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        default=1024, description="Output cap of a sample, tokens."
    )


class TestCase(_Part):
    """A text, and what the spec should make of it."""

    __test__ = False  # pytest would collect it

    text: Text = Field(description="The text.")
    kind: Literal["positive", "evasive", "negative"] = Field(
        description="positive: must be caught; evasive: the same in disguise; negative: must pass."
    )
    expect: Name | None = Field(
        default=None, description="The rule that must catch it; any circuit breaker or output signal when left out."
    )
    where: Literal["input", "output"] = Field(default="input", description="Whether it is asked or answered.")


RULE_GROUPS: Final = ("circuit_breakers", "risk_signals", "output_signals")
_SHORT: Final = ("name", "version", "domain", "description", "model_compatibility")


class SpecModel(_Part):
    """A spec, checked.

    Read one with `load_spec` or `load_spec_from_dict`: they name file, line and rule of everything that is wrong.

    Example:
        >>> from brix_core.regulated.format.loading import load_spec_from_dict
        >>> spec = load_spec_from_dict({
        ...     "name": "house", "version": "1.0",
        ...     "circuit_breakers": [{"name": "keys", "description": "Asks for keys.", "patterns": ["door key"]}]})
        >>> spec.label, [rule.name for rule in spec.rules()]
        ('house 1.0', ['keys'])
    """

    metadata: Metadata = Field(description="What the spec is.")
    defaults: Defaults = Field(default=Defaults(), description="What a rule has when it does not say otherwise.")
    circuit_breakers: tuple[CircuitBreaker, ...] = Field(default=(), description="Rules that stop a call.")
    risk_signals: tuple[RiskSignal, ...] = Field(default=(), description="Rules that raise the risk of a call.")
    output_signals: tuple[OutputSignal, ...] = Field(default=(), description="What is looked for in answers.")
    harmless: tuple[Line, ...] = Field(
        default=(),
        description="Texts that no rule is meant for: negative examples of every rule about what is asked.",
    )
    uncertainty_types: tuple[UncertaintyTypeDef, ...] = Field(
        default=(), description="What is done about each kind of uncertainty."
    )
    sampling_config: SamplingConfig = Field(
        default=SamplingConfig(), description="How often the model is asked, by risk."
    )
    test_cases: tuple[TestCase, ...] = Field(default=(), description="What `brix test` runs.")

    @property
    def name(self) -> str:
        """Name of the spec."""
        return self.metadata.name

    @property
    def version(self) -> str:
        """Version of the spec."""
        return self.metadata.version

    @property
    def label(self) -> str:
        """Name and version, as they stand in results and traces: ``"medical 1.0.0"``."""
        return f"{self.name} {self.version}"

    def rules(self) -> Iterator[CircuitBreaker | RiskSignal | OutputSignal]:
        """All rules, breakers first, in the order of the spec."""
        yield from self.circuit_breakers
        yield from self.risk_signals
        yield from self.output_signals

    def rule(self, name: str) -> CircuitBreaker | RiskSignal | OutputSignal | None:
        """The rule of that name, or None."""
        return next((rule for rule in self.rules() if rule.name == name), None)

    @model_validator(mode="before")
    @classmethod
    def _normalised(cls, data: Any) -> Any:
        return with_defaults(with_metadata(data))

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> SpecModel:
        if not (info.context or {}).get("checked"):
            found = list(inconsistencies(self.model_dump()))
            if found:
                raise ValueError("; ".join(_told(finding) for finding in found))
        return self


def _told(finding: Finding) -> str:
    return f"rule {finding.rule!r}: {finding.message}" if finding.rule else finding.message


def with_metadata(data: Any) -> Any:
    """The short form, ``name`` and ``version`` at the top, as the long one; anything else as it is."""
    if not isinstance(data, Mapping) or "metadata" in data or "name" not in data:
        return data
    rest = {key: value for key, value in data.items() if key not in _SHORT}
    return {"metadata": {key: data[key] for key in _SHORT if key in data}, **rest}


def with_defaults(data: Any) -> Any:
    """The spec with its ``defaults`` written into the rules; what does not look like a spec as it is."""
    if not isinstance(data, Mapping) or not data.get("defaults"):
        return data
    try:
        defaults = Defaults.model_validate(data["defaults"])
    except ValidationError:  # told where it stands, once
        return data
    given = {name: getattr(defaults, name) for name in defaults.model_fields_set}
    filled = {
        group: [{**given, **rule} if isinstance(rule, Mapping) else rule for rule in data[group]]
        for group in ("circuit_breakers", "risk_signals")
        if isinstance(data.get(group), list | tuple)
    }
    return {**data, **filled}


__all__ = [
    "RULE_GROUPS",
    "ActionConfig",
    "CircuitBreaker",
    "Defaults",
    "Examples",
    "InputRule",
    "Metadata",
    "ModelCompatibility",
    "OutputSignal",
    "RiskSignal",
    "Rule",
    "SamplingConfig",
    "SpecModel",
    "TestCase",
    "UncertaintyTypeDef",
    "with_defaults",
    "with_metadata",
]
