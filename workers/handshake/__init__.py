"""The worker that performs handshakes and relays strangers to Dest."""
