"""For authors of specs: lint, tests, explanations, drafts, calibration."""
