"""Commands that tell qre.ko, or BPF maps, one thing each: devices, sessions and connection IDs by hand."""
