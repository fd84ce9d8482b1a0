"""What `prepare.py` does: opens downloads, recognises their layouts and arranges them under --dir_data."""
