"""The virtual machine of the tests: `scripts/vm`. Standard library only, so that it runs without the venv."""
