"""Start an operator's command: `python -m operations --help`."""

from clients import console


def main() -> None:
    console.main("operations.commands")


if __name__ == "__main__":
    main()
