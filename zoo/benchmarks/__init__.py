"""Benchmarks: one file each beside `base.py`, imported here."""

from zoo.benchmarks.base import Benchmark, find_benchmark
from zoo.benchmarks.vsibench import VSIBench
