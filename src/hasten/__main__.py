"""`python -m hasten` is the `hasten` program."""

from hasten.cli.main import main

if __name__ == "__main__":
    main()
