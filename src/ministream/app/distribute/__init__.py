"""In the place of aps-mini-apps' distributor."""
