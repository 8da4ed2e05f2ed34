"""How quick and how small nsupervisor is, beside other supervisors and runtimes; see docs/performance.md."""
