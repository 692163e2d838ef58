"""What is wrong with a service, and what helps."""
