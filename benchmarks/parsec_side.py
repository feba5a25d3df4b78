"""The other peer's side of the measurement; runs in that peer's own environment, with nothing of ours imported.

Reads one line of JSON, ``{"schema": ..., "texts": [...]}``, and answers with ``{"values": [...], "seconds": s}``: for
each text what parsec-llm's validator made of it, as ``[value]``, or null where it found nothing valid.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    from parsec.validators import JSONValidator  # only there in the peer's environment

    task = json.loads(sys.stdin.readline())
    validator, values = JSONValidator(), list[Any]()
    started = time.perf_counter()
    for text in task["texts"]:
        try:
            result = validator.validate_and_repair(text, task["schema"])
        except Exception:
            values.append(None)
            continue
        values.append([result.parsed_output] if result.status.value == "valid" else None)
    print(json.dumps({"values": values, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
