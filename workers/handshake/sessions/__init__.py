"""Live sessions after their handshake: secrets, epochs, connection IDs, requests to the data plane. No socket."""
