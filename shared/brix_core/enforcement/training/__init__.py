"""Training data from what was enforced."""

from brix_core.enforcement.training.collector import DatasetCollector
from brix_core.enforcement.training.examples import Example

__all__ = ["DatasetCollector", "Example"]
