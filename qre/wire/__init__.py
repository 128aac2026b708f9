"""QUIC v1 on the wire, sans-IO."""
