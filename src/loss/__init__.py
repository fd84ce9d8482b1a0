"""Training losses: their names (`names.py`), the weighted sum (`weighted.py`), and the terms that need networks."""
