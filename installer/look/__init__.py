"""Looking at a service: status, figures, journal, what its clients need."""
