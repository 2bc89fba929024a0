"""`python -m touchstone`: the command line without an installed script."""

from touchstone.cli import main

if __name__ == "__main__":
    main()
