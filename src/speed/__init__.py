"""The parts of `bench.py`.

cases.py      which cases there are: a group of them shares a baseline
workloads.py  what runs: inference, training steps, tests, and the ceilings that they are compared with
loading.py    the same for training data
worker.py     a case in a process of its own, and a group of them timed in turn
table.py      the table of the results
"""
