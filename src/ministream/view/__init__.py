"""The web page of the live view, in a process of its own: it shows what a feed provides."""
