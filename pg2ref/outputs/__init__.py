"""What comes back to the person who asked."""
