"""What a model says: looked at whole, and as it streams."""
