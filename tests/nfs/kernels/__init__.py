"""The kernels of other Debian releases on the lab, and what locks need of them: ``make test-kernels``."""
