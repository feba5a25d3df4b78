"""The peer's side of `benchmarks.regulated_recall`; runs in the peer's own environment, with nothing of ours imported.

Reads lines ``{"texts": [...]}`` and answers each with ``{"stopped": [...]}``: whether brix-protocol's medical spec hits
a circuit breaker. Its consistency analysis is given vectors that are all the same: it looks at answers, not at what is
asked, and would load half a gigabyte for it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class SameVectors:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def encode(self, texts: Any, **kwargs: Any) -> Any:
        import numpy as np

        return np.ones(4) if isinstance(texts, str) else np.ones((len(texts), 4))


async def main() -> None:
    stub: Any = ModuleType("sentence_transformers")
    stub.SentenceTransformer = SameVectors
    sys.modules["sentence_transformers"] = stub

    import brix.regulated  # only there in the peer's environment

    spec = next(Path(brix.regulated.__file__).parent.glob("specs/medical/*.yaml"))
    router = brix.regulated.BrixRouter(llm_client=brix.regulated.MockLLMClient(), spec=spec)
    for line in sys.stdin:
        results = [await router.process(text) for text in json.loads(line)["texts"]]
        print(json.dumps({"stopped": [bool(result.circuit_breaker_hit) for result in results]}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
