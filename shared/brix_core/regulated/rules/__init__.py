"""What the rules of a spec find: by their patterns, by meaning, by signals of the application."""
