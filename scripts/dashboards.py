"""The dashboards that ship, built in Grafana's own types, of the version of Grafana that pyproject.toml names."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from installer.base.assets import DATA
from scripts.boards import BOARDS
from scripts.boards.words import SERVICE, Board, Panel, Query, Row, Variable

SHIPPED = DATA / "dashboards"
SDK = "grafana_foundation_sdk"
KINDS = {
    "timeseries": "timeseries",
    "stat": "stat",
    "bargauge": "bargauge",
    "table": "table",
    "state-timeline": "statetimeline",
}


def texts() -> dict[str, str]:
    """What each file of installer/data/dashboards is to hold."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {f"{name}.json": encoder.encode(_board(board).build()) + "\n" for name, board in BOARDS.items()}


def _board(board: Board) -> Any:
    from grafana_foundation_sdk.builders import dashboard as build
    from grafana_foundation_sdk.models.dashboard import DashboardCursorSync

    made = (
        build.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["vllm", "vllm-install"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(_links())
    )
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    if any(variable.name == "service" for variable in board.variables):
        made = made.annotation(_changes())
    number = 1
    for row in board.rows:
        made, number = _row(made, row, number)
    return made


def _links() -> Any:
    """From each of ours to the others, with the same time and service."""
    from grafana_foundation_sdk.builders.dashboard import DashboardLink
    from grafana_foundation_sdk.models.dashboard import DashboardLinkType

    link = DashboardLink("vLLM").type(DashboardLinkType.DASHBOARDS).tags(["vllm-install"])
    return link.as_dropdown(True).include_vars(True).keep_time(True)


def _row(made: Any, row: Row, number: int) -> tuple[Any, int]:
    from grafana_foundation_sdk.builders import dashboard as build

    made = made.with_row(build.Row(row.title).id(number))
    for panel in row.panels:
        number += 1
        made = made.with_panel(_panel(panel).id(number))
    return made, number + 1


def _source() -> Any:
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _variable(variable: Variable) -> Any:
    from grafana_foundation_sdk.builders.dashboard import QueryVariable
    from grafana_foundation_sdk.models.dashboard import VariableRefresh, VariableSort

    made = QueryVariable(variable.name).label(variable.label).query(variable.query).datasource(_source())
    made = made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return made.multi(True).include_all(True).all_value(".*") if variable.many else made


def _changes() -> Any:
    """A mark where a change was remembered: the row has another time than in minutes before, a look missed or not."""
    from grafana_foundation_sdk.builders.dashboard import AnnotationQuery

    row = f"vllm_install_changed_timestamp_seconds{{{SERVICE}}}"
    expr = f"({row} > time() - 600) unless (max_over_time({row}[10m] offset $__interval) == {row})"
    return AnnotationQuery().name("changes").datasource(_source()).enable(True).icon_color("blue").expr(expr)


def _panel(panel: Panel) -> Any:
    module = importlib.import_module(f"{SDK}.builders.{KINDS[panel.kind]}")
    made = module.Panel().title(panel.title).description(panel.about).datasource(_source())
    made = made.span(panel.width).height(panel.height).thresholds(_thresholds(panel)).color_scheme(_colours(panel))
    if panel.kind != "table":
        made = made.unit(panel.unit)
    if panel.states:
        made = made.mappings(_states(panel))
    if panel.top is not None:
        made = made.min(0).max(panel.top)
    for index, query in enumerate(panel.queries):
        made = made.with_target(_target(panel, query, chr(ord("A") + index)))
    return _OWN[panel.kind](made, panel)


def _target(panel: Panel, query: Query, ref: str) -> Any:
    from grafana_foundation_sdk.builders.prometheus import Dataquery
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

    made = Dataquery().expr(query.expr).ref_id(ref).legend_format(query.legend or "__auto").datasource(_source())
    if panel.kind == "table":
        return made.instant().format(PromQueryFormat.TABLE)
    return made.instant() if panel.kind == "bargauge" else made.range()


def _thresholds(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
    from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode

    steps = [Threshold(value, colour) for value, colour in panel.steps]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _colours(panel: Panel) -> Any:
    from grafana_foundation_sdk.builders.dashboard import FieldColor
    from grafana_foundation_sdk.models.dashboard import FieldColorModeId

    by_series = panel.kind == "timeseries"
    return FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC if by_series else FieldColorModeId.THRESHOLDS)


def _states(panel: Panel) -> Any:
    from grafana_foundation_sdk.models.dashboard import ValueMap, ValueMappingResult

    return [ValueMap({str(value): ValueMappingResult(text=word, color=colour) for value, word, colour in panel.states})]


def _timeseries(made: Any, panel: Panel) -> Any:
    from grafana_foundation_sdk.builders import common as build
    from grafana_foundation_sdk.models import common

    legend = build.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    made = made.legend(legend.placement(common.LegendPlacement.BOTTOM))
    made = made.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    made = made.line_width(1.5).fill_opacity(30 if panel.stacked else 0).show_points(common.VisibilityMode.NEVER)
    if panel.stacked:
        made = made.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL))
    return made.axis_soft_min(0)


def _stat(made: Any, panel: Panel) -> Any:
    from grafana_foundation_sdk.models import common

    made = made.graph_mode(common.BigValueGraphMode.AREA).color_mode(common.BigValueColorMode.VALUE)
    return made.reduce_options(_last())


def _last() -> Any:
    from grafana_foundation_sdk.builders.common import ReduceDataOptions

    return ReduceDataOptions().calcs(["lastNotNull"])


def _bargauge(made: Any, panel: Panel) -> Any:
    from grafana_foundation_sdk.models import common

    made = made.display_mode(common.BarGaugeDisplayMode.BASIC).orientation(common.VizOrientation.HORIZONTAL)
    return made.reduce_options(_last()).min(0)


def _table(made: Any, panel: Panel) -> Any:
    """The labels that are wanted, in their order, and no others."""
    from grafana_foundation_sdk.models.dashboard import DataTransformerConfig

    options = {"include": {"names": list(panel.columns)}}
    order = {"indexByName": {name: index for index, name in enumerate(panel.columns)}}
    made = made.with_transformation(DataTransformerConfig("filterFieldsByName", options=options))
    return made.with_transformation(DataTransformerConfig("organize", options=order))


def _timeline(made: Any, panel: Panel) -> Any:
    from grafana_foundation_sdk.builders.common import VizLegendOptions
    from grafana_foundation_sdk.models import common

    made = made.show_value(common.VisibilityMode.NEVER).row_height(0.8).merge_values(True)
    return made.legend(VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True))


_OWN = {"timeseries": _timeseries, "stat": _stat, "bargauge": _bargauge, "table": _table, "state-timeline": _timeline}


def main() -> None:
    if importlib.util.find_spec(SDK) is None:  # it needs Python 3.11
        print("the dashboards are left as they are: grafana-foundation-sdk is not installed")
        return
    SHIPPED.mkdir(exist_ok=True)
    for name, text in texts().items():
        (SHIPPED / name).write_text(text)


if __name__ == "__main__":
    main()
