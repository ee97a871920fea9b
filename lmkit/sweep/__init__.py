"""Many runs: searches, and the combinations of a multirun."""
