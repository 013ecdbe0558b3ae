from pathlib import Path

from longtape.features.catalogue import features, targets
from longtape.features.document import document

PAGE = Path(__file__).parents[2] / "docs" / "features.md"


def test_the_page_is_what_the_registry_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), (
        "run python -m longtape.features.document docs/features.md"
    )


def test_everything_says_what_it_is_and_where_it_comes_from() -> None:
    for spec in (*features().values(), *targets().values()):
        assert spec.description.endswith(".")
        assert spec.formula
        assert spec.source
