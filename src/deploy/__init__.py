"""What leaves the framework: the folded file and its check (`fold.py`), and other forms (`formats.py`)."""
