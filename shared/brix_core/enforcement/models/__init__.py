"""The models an engine asks; see `brix_core.enforcement.adapters`."""
