"""`python -m fmeco` is the console script `fmeco`."""

from fmeco.cli.app import main

if __name__ == "__main__":
    main()
