"""Which authenticated hellos are accepted: once each, on this server and on those that share its key. The flow table
asks here; handshakes are made elsewhere."""
