"""What every program runs on: how failures end it (`errors.py`), and several processes (`distributed.py`)."""
