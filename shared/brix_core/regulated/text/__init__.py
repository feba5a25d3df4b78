"""Texts freed of their disguises, and phrases found in them."""
