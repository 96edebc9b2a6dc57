"""What server and client say to each other, how it is signed, what may leave a client."""
