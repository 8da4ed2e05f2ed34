"""``python -m nsupervisor`` is the ``nsupervisor`` command."""

from nsupervisor.cli.main import main

if __name__ == "__main__":
    main()
