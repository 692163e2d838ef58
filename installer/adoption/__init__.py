"""Taking over a service that somebody set up by hand, and giving one back."""
