"""What follows from what was found: the two tracks, samples, actions, and the result."""
