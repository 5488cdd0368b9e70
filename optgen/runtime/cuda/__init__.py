"""An NVIDIA GPU: its driver, memory that it borrows from the host, graphs that it records."""
