"""One exception tree. Every message says what is wrong, where, and what to do about it."""


class MappaError(Exception):
    """Base of every error that mappa raises on purpose. Programs print its message and exit with 2."""


class ConfigError(MappaError):
    """A config file or override that cannot be used: an unknown key, a wrong type, a value out of range."""


class ModelError(MappaError):
    """A base model that is missing, damaged, or lacks what mappa needs of it (a chat template, say)."""


class TaskError(MappaError):
    """A task that cannot be used: no answers, no target, a damaged table."""


class SandboxError(MappaError):
    """The sandbox could not be set up or stopped answering. Never raised for what model-written code does."""


class CoachError(MappaError):
    """A coach that cannot score a role at all. A score that is missing once is a Verdict, not an error."""


class SamplerError(MappaError):
    """A generation request that could not be answered."""


class ServerError(SamplerError):
    """A server that does not come up, is lost for good, or is not the one that was meant."""


class AdapterError(SamplerError):
    """An adapter that does not exist, was retired, or belongs to another base."""


class TeamError(MappaError):
    """A multi-agent system that cannot be loaded or that names its roles wrongly."""


class LearnError(MappaError):
    """A batch or a setting that the learner refuses before anything is changed."""


class NothingToLearnError(LearnError):
    """A batch without a sample, or whose every action is cut off or unscored."""


class NonFiniteError(LearnError):
    """A NaN or Inf met in a step. The step was stopped before the update."""


class CheckpointError(MappaError):
    """A checkpoint that is missing, damaged, or belongs to another run."""


class JournalError(MappaError):
    """A journal of another schema or another config, or one that cannot be written."""


class DiskError(MappaError):
    """Too little disk space for what is about to be written."""
