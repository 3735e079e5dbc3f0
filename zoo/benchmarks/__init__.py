"""Benchmarks with short answers (`vsibench.py`, `vstibench.py`) and with free answers (`free_answers.py`).

All are imported here.
"""

from zoo.benchmarks.base import Benchmark, OwnQuestions, find_benchmark, registered_benchmarks
from zoo.benchmarks.free_answers import SQA3D, ScanQA
from zoo.benchmarks.vsibench import PanelBench, ReVSI, VSIBench
from zoo.benchmarks.vstibench import VSTIBench
