"""The native wire's two drivers: each gives a session of `wire.session` a socket and a thread."""
