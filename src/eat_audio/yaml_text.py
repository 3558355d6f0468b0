"""Parse YAML into plain values, in bounded time for any text.

A few hundred bytes of aliases may expand to more values than any memory holds, and deep nesting to
a recursion that Python refuses. So values are counted, with every alias expanded, before they are
constructed.
"""

from typing import Any

import yaml

LONGEST = 1_000_000  # bytes of a file
VALUES = 10_000  # values, with aliases expanded
DEPTH = 50  # levels of nesting
NAME = 200  # characters of a name
NUMBER = 100  # characters of a number: some spellings take quadratic time to read


def parse(text: str) -> Any:
    """Parse one document; names are text, even `on` and `1`.

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
    """A safe loader with limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.level = self.nodes = 0
        self.extents: dict[int, tuple[int, int]] = {}
        """By the identity of a finished node: its values and its depth."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and check its size."""
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


def _check(valid: bool, problem: str, mark: yaml.Mark) -> None:
    if not valid:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, list) else value
