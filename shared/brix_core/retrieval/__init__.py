"""What a vector index answers, with scores that mean the same everywhere."""
