"""Shared file systems of many kinds on the lab, and what is tried on each: ``make test-filesystems``."""
