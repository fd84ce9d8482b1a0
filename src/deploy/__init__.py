"""What leaves the framework: the folded file and its check (`folded.py`), and other forms (`formats.py`)."""
