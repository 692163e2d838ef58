"""An engine as a container image, run by podman."""
