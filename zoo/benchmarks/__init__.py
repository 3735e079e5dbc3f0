"""Benchmarks: one file each beside `base.py`, imported here."""

from zoo.benchmarks.base import Benchmark, find_benchmark, registered_benchmarks
from zoo.benchmarks.own_questions import OwnQuestions
from zoo.benchmarks.panels import PanelBench
from zoo.benchmarks.revsi import ReVSI
from zoo.benchmarks.scanqa import ScanQA
from zoo.benchmarks.sqa3d import SQA3D
from zoo.benchmarks.vsibench import VSIBench
