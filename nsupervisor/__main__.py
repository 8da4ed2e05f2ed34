"""Run the command line, as `python -m nsupervisor`, exactly like the `nsupervisor` command."""

from nsupervisor.cli.main import main

if __name__ == "__main__":
    main()
