"""Start an operator's command: `python -m operations --help`."""

from clients.command import console

if __name__ == "__main__":
    console.main("operations.commands")
