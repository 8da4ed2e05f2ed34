"""Measure the speed and the footprint of nsupervisor and of other supervisors and runtimes; see docs/performance.md."""
