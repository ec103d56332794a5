"""Errors that are the user's to mend. The entries print them in a line or two, without a traceback, and exit with 2."""


class GenlabError(Exception):
    """Something the user asked for cannot be done; the message says what is wrong, where, and what to do."""


class ConfigError(GenlabError):
    """A config that cannot be run: unknown key, wrong type, impossible combination."""


class CheckpointError(GenlabError):
    """A checkpoint or export that is truncated, foreign or of another architecture."""


class DataError(GenlabError):
    """Images, labels, archives or reference statistics that cannot be used as given."""


class WeightsUnavailable(GenlabError):
    """Pretrained weights that are neither at the given path, nor cached, nor reachable."""


class NonFinite(GenlabError):
    """A loss, gradient or sample became NaN or infinite."""
