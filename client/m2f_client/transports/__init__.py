"""How requests travel to a server: gRPC, HTTP and shared memory."""
