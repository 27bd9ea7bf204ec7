"""The SciStream tunnel: control server (S2CS), client (S2UC) and data servers (S2DS)."""
