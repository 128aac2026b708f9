"""One established session: keys, packet numbers, frames, its path and its size; without sockets or clocks."""
