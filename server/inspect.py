"""Print the generation parameters stored in an image as JSON: `python -m server.inspect FILE`."""

import json
import sys

from PIL import Image, UnidentifiedImageError

from server.generation.metadata import read


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m server.inspect FILE", file=sys.stderr)
        return 2
    try:
        with Image.open(argv[0]) as image:
            facts = read(image)
    except (OSError, UnidentifiedImageError) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 1
    if facts is None:
        print(f"{argv[0]}: no generation parameters", file=sys.stderr)
        return 1
    print(json.dumps(facts, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
