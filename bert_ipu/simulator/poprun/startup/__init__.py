"""A folder for the program's PYTHONPATH; see `sitecustomize.py`."""
