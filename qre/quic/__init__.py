"""The QUIC and HTTP/3 handshake, built on aioquic by subclassing; sans-IO."""
