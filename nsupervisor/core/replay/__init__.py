"""Traces, and what another configuration would have done with them."""
