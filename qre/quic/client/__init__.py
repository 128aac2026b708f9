"""The client's end of the handshake, which looks like a browser's; sans-IO. No server code."""
