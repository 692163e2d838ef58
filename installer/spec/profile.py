"""What was found out about a model: parsers, images."""

from __future__ import annotations

from dataclasses import dataclass

from installer.base.language import tr


@dataclass(frozen=True)
class Profile:
    """What was found out about one model."""

    family: str = ""
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    takes_images: bool = False
    needs: tuple[str, ...] = ()  # what it would take for more

    def describe(self) -> str:
        """One line for people."""
        tools = tr("tool calls by {parser}", parser=self.tool_parser) if self.tool_parser else tr("no tool calls")
        reasoning = tr("no separate reasoning")
        if self.reasoning_parser:
            reasoning = tr("reasoning by {parser}", parser=self.reasoning_parser)
        return tr(
            "{family}: {tools}, {reasoning}, {images}",
            family=self.family or tr("no known family"),
            tools=tools,
            reasoning=reasoning,
            images=tr("takes images") if self.takes_images else tr("text only"),
        )
