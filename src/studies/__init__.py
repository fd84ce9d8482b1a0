"""Experiments on the framework itself: run from src/ as `python -m studies.ablation` and so on."""
