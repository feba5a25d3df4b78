"""What `brix lint`, `test`, `explain` and `generate` do, each from what was asked for to an exit code."""
