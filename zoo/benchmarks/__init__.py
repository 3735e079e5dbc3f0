"""Benchmarks, imported here: those with short answers (`vsibench.py`) and those with free ones (`free_answers.py`)."""

from zoo.benchmarks.base import Benchmark, OwnQuestions, find_benchmark, registered_benchmarks
from zoo.benchmarks.free_answers import SQA3D, ScanQA
from zoo.benchmarks.vsibench import PanelBench, ReVSI, VSIBench
