"""What passes between processes: messages, descriptors, and the sandbox a worker lives in."""
