"""The two wires of aps-mini-apps over ZeroMQ, each with a sender and a receiver."""
