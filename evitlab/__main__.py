"""`python -m evitlab` is the command line."""

from evitlab.cli import main

raise SystemExit(main())
