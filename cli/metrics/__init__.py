"""Numbers for monitors: OpenMetrics on standard output, or over HTTP on a socket that systemd listens on."""
