"""Replaces aps-mini-apps' distributor."""
