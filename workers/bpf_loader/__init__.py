"""The worker that steers packets by routed connection ID."""
