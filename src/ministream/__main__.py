"""`python -m ministream`: the command line."""

from ministream.cli import main

main()
