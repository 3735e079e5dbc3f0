"""Benchmarks: one file each beside `base.py`, imported here."""

from zoo.benchmarks.base import Benchmark, OwnQuestions, find_benchmark, registered_benchmarks
from zoo.benchmarks.scanqa import SQA3D, ScanQA
from zoo.benchmarks.vsibench import PanelBench, ReVSI, VSIBench
