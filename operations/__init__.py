"""The operators' command line: `python -m operations`, or `accounts` where it is installed."""
