"""Training: the loop (`trainer.py`), one optimizer step (`step.py`), what a run goes on from (`state.py`).

`build.py` makes these from the options.
"""
