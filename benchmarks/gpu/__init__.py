"""All benchmarks that need a GPU, run by one command: `make gpu PYTHON=...`, see `benchmarks.gpu.__main__`."""
