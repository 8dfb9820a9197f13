"""What operators run, and what starts the example: `python -m operations --help`."""
