"""Commands that change one object of qre.ko or one BPF map: devices, sessions, connection IDs."""
