"""Links, addresses and routes."""
