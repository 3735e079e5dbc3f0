"""Every number that needs a GPU, by one command: `make gpu PYTHON=...`, see `benchmarks.gpu.__main__`."""
