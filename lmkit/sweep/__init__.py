"""Many runs at once: the searches of `lmkit sweep`, and the combinations of `train -m`."""
