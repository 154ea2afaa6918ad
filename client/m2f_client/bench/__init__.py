"""`m2f bench`: what a server does for a user's own images, where the time goes, and what to turn."""
