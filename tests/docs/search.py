"""Searches the built site as its theme does in a browser: lunr over the index that mkdocs writes.

The theme asks for all words, and weighs a word in a title a thousand times.
"""

import functools
import json
import re
from pathlib import Path

from lunr.builder import Builder
from lunr.index import Index
from lunr.stemmer import stemmer
from lunr.stop_word_filter import stop_word_filter
from lunr.trimmer import trimmer

_TAGS = re.compile(r"<[^>]+>")


def pages(site: Path, words: str) -> list[str]:
    """The pages with all the words, the best first, each once."""
    separator, index = _index(site)
    query = " ".join(f"+{word}" for word in separator.split(words) if word)
    found = (result["ref"].partition("#")[0] for result in index.search(query))
    return list(dict.fromkeys(found))


@functools.cache
def _index(site: Path) -> tuple[re.Pattern[str], Index]:
    """What separates words, and the index of the site, which stays as it is."""
    written = json.loads((site / "search/search_index.json").read_text())
    separator = re.compile(written["config"]["separator"])
    builder = Builder()
    builder.ref("location")
    builder.field("title", boost=1000)
    builder.field("text")
    builder.pipeline.add(trimmer, stop_word_filter, stemmer)
    builder.search_pipeline.add(stemmer)
    for section in written["docs"]:
        fields = {
            name: [word for word in separator.split(_TAGS.sub(" ", section[name])) if word]
            for name in ("title", "text")
        }
        builder.add({"location": section["location"], **fields}, {"boost": section.get("boost", 1)})
    return separator, builder.build()
