"""Compiled programs as files: how they are written, found again, and why one was not found."""
