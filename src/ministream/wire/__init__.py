"""What travels: headers, codecs and session state machines; bytes in, events out, no sockets."""
