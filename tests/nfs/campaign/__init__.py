"""A long random campaign against a lock on the lab: see `__main__.py`."""
