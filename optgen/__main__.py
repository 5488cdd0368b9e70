"""`python -m optgen`: the command `optgen`, with this Python."""

from optgen.cli import main

if __name__ == "__main__":
    main()
