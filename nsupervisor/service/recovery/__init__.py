"""Going on after a death: takeover of what runs, and upgrade in place."""
