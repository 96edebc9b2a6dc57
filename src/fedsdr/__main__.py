"""`python -m fedsdr`: the command line."""

from fedsdr.cli.main import main

if __name__ == "__main__":
    main()
