"""Experiments with the framework, run from src/: `python -m studies.ablation`, `degrade`, `demo`, `verify_resume`."""
