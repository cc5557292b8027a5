"""The automation condition of embeddings that follow their source and their model."""

import dagster as dg


def eager_or_model_changed() -> dg.AutomationCondition[dg.AssetKey]:
    """`AutomationCondition.eager()`, and also when the declared model or text changed (the asset's code version).

    Without the second part a changed model only marks the asset as stale. Both look at the latest time window alone:
    the history of a partitioned asset is the work of `build_catch_up_schedule`.
    """
    changed = dg.AutomationCondition.code_version_changed().since(
        dg.AutomationCondition.newly_requested() | dg.AutomationCondition.newly_updated()
    )
    ready = (
        ~dg.AutomationCondition.missing()
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & dg.AutomationCondition.in_latest_time_window()
    )
    return (dg.AutomationCondition.eager() | (ready & changed)).with_label("eager_or_model_changed")
