"""YAML text -> plain values, in bounded time whatever the text is.

A few hundred bytes of aliases may stand for more values than any memory holds, and deep nesting
ends in a recursion that Python refuses. So values are counted, as if every alias were written out,
while the text is read, and nothing is made of them before they are known to be few.
"""

from typing import Any

import yaml

LONGEST = 1_000_000
"""Bytes of a file."""
VALUES = 10_000
"""The most values, those of aliases written out."""
DEPTH = 50
"""How deep they may be nested."""
NAME = 200
"""Characters of a name."""
NUMBER = 100
"""Characters of a number: some spellings take quadratic time to read."""


def parse(text: str) -> Any:
    """Read one document; names are text, whatever YAML takes them for (`on`, `1`).

    Raises:
        yaml.YAMLError: It is no YAML, has a name twice, or is too large in some way.
        ValueError: A value is not of the kind that it says it is.
    """
    loader = _Bounded(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _with_text_keys(loader.construct_document(node))
    except (LookupError, AttributeError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError("a value is not what it is marked as") from error
    finally:
        loader.dispose()


class _Bounded(yaml.SafeLoader):
    """A safe loader that gives up where a text means more than it should."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.level = self.nodes = 0
        self.extents: dict[int, tuple[int, int]] = {}
        """By the identity of a finished node: values in it, and how deep they are nested."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and see how much it means."""
        event = self.peek_event()
        self.level += 1
        self.nodes += 1
        _check(self.level <= DEPTH, f"more than {DEPTH} levels", event.start_mark)
        _check(self.nodes <= VALUES, f"more than {VALUES:_} values", event.start_mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        if node is not None and id(node) not in self.extents:
            # the node of an alias is finished, or else the alias lies in it
            own = not isinstance(event, yaml.AliasEvent)
            _check(own, "a value contains itself", event.start_mark)
            self.extents[id(node)] = self._extent(node)
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                inner += [key, value]
                if isinstance(key, yaml.ScalarNode):
                    _check(key.value not in names, f"'{key.value}' is set twice", key.start_mark)
                    _check(len(key.value) <= NAME, "a name is too long", key.start_mark)
                    names.add(key.value)
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif node.tag.endswith((":int", ":float")):
            _check(len(node.value) <= NUMBER, "a number is too long", node.start_mark)
        extents = [self.extents[id(one)] for one in inner]
        values = 1 + sum(count for count, _ in extents)
        depth = 1 + max((depth for _, depth in extents), default=0)
        _check(values <= VALUES, f"more than {VALUES:_} values", node.start_mark)
        _check(depth <= DEPTH, f"more than {DEPTH} levels", node.start_mark)
        return values, depth


def _check(fine: bool, problem: str, mark: yaml.Mark) -> None:
    if not fine:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value
