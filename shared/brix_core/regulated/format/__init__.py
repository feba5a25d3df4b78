"""The format of specs: reading, checking and describing them."""
