"""The service's HTTP face: bodies in, the batcher asked, answers out in the words of the API that was called."""

from fletcher_core.service.http.app import HttpService

__all__ = ["HttpService"]
