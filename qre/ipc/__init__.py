"""What passes between processes: messages, descriptors, and the sandbox of a worker."""
