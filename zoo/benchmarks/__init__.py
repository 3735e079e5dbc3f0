"""Benchmarks: one file each beside `base.py`, imported here."""

from zoo.benchmarks.base import Benchmark, find_benchmark, registered_benchmarks
from zoo.benchmarks.vsibench import VSIBench
