"""Answers that fit a schema: found in text, mended, checked, and asked for natively."""
