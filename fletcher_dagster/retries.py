"""How often and how patiently a failed embedding step is tried again."""

import dagster as dg

from fletcher_core.errors import ConfigError


def fletcher_retry_policy(max_retries: int = 4, delay: float = 10.0) -> dg.RetryPolicy:
    """A policy for `fletcher_assets(retry_policy=...)`: each wait twice the one before, and never twice the same.

    Only failures that can pass by themselves are tried again: a database that another process writes, a store that
    another run has locked, a server that is down. A missing column or model fails at once, whatever the policy.

    Args:
        max_retries: attempts after the first; the default waits about two and a half minutes in all.
        delay: seconds before the second attempt, about: the jitter adds or takes away up to all of it.

    Raises:
        ConfigError: a negative number.
    """
    if max_retries < 0 or delay < 0:
        raise ConfigError(f"fletcher_retry_policy(max_retries={max_retries}, delay={delay}): neither can be negative")
    return dg.RetryPolicy(
        max_retries=max_retries, delay=delay, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
    )
