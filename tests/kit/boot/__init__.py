"""A throwaway Linux host with a real systemd as PID 1, on this machine's /usr, in half a second."""
