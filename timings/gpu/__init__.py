"""All timings that need a GPU, run by one command: `make gpu PYTHON=...`, see `timings.gpu.__main__`."""
