"""`python -m kdpipe.pipeline` is the `kdpipe` command."""

from kdpipe.pipeline.cli import main

main()
