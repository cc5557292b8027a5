"""A metric whose values are known elsewhere already: in a scrape, out those values as of now.

So whoever counts for other reasons, or has a state that changes by the passing of time, pays nothing between scrapes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_LOG = logging.getLogger(__name__)

Values = Callable[[], Mapping[str, float]]


class Asked(Collector):
    """A counter or gauge with one label. `ask` says whom to ask; before that it has no series.

    Args:
        family: which of the two it is.
        name, documentation: as of any metric.
        label: its name; whoever is asked answers with a value for each of the label's.
        registry: that shows it.
    """

    def __init__(
        self,
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        documentation: str,
        label: str,
        *,
        registry: CollectorRegistry,
    ) -> None:
        self._family = family
        self._name = name
        self._documentation = documentation
        self._label = label
        self._values: Values = dict
        registry.register(self)

    def ask(self, values: Values) -> None:
        """From now on `values` is called at each scrape, on the thread that scrapes."""
        self._values = values

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metric without its values."""
        yield self._family(self._name, self._documentation, labels=[self._label])

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metric with its values as of now."""
        (family,) = self.describe()
        try:
            values = sorted(self._values().items())
        except Exception:  # noqa: BLE001 - whatever it is: the other metrics are shown
            _LOG.exception("%s is not known", self._name)
            values = []
        for label, value in values:
            family.add_metric([label], value)
        yield family
