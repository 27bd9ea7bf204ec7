"""From detector counts to line integrals."""
