"""The JSON Schema of the spec format, for editors.

``brix lint --schema > spec.schema.json``, then in a spec, for editors that understand it::

    # yaml-language-server: $schema=spec.schema.json
"""

from __future__ import annotations

from typing import Any

from brix_core.regulated.format.spec import Metadata, SpecModel


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec, draft 2020-12, the short form included.

    It says what each field may hold. Whether the parts fit together (unique names, patterns that compile, cases that
    name a rule) only loading a spec can tell.

    Example:
        >>> schema = json_schema()
        >>> schema["$defs"]["RiskSignal"]["properties"]["weight"]["maximum"]
        1
        >>> sorted(schema["anyOf"][1]["required"])
        ['name']
    """
    schema = SpecModel.model_json_schema()
    top = Metadata.model_json_schema(ref_template="#/$defs/{model}")["properties"]
    schema["properties"] = {**schema["properties"], **top}
    schema.pop("required", None)
    schema["anyOf"] = [{"required": ["metadata"]}, {"required": ["name"]}]
    schema["title"] = "A brix spec"
    schema["description"] = "What a regulated domain watches for, and what is done about it."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


__all__ = ["json_schema"]
