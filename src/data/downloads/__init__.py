"""What `prepare.py` does: opens downloads, recognises their layouts, arranges their images and completes the sets."""
