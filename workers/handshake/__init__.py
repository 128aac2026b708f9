"""The worker that shakes hands and relays strangers to Dest."""
