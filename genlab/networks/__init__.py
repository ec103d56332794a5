"""One architecture a file, presets at the bottom; a network is a pure function of its inputs."""
