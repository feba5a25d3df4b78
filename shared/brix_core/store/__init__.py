"""Shared state: budgets, rates and breakers that several callers decide on together."""

from brix_core.store.base import Balance, Demand, Grant, Store
from brix_core.store.memory import MemoryStore, default_store

__all__ = ["Balance", "Demand", "Grant", "MemoryStore", "Store", "default_store"]
