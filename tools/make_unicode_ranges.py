#!/usr/bin/env python3
"""Writes src/text/unicode_ranges.h: the code points of \\p{L}, \\p{N} and White_Space as sorted ranges.

Needs PyPI's `unicodedata2` at the version named below (the Unicode version of the regex engine inside PyPI's
`tokenizers`, which is the reference for ids). Run by hand when that version moves:
    python tools/make_unicode_ranges.py > src/text/unicode_ranges.h
"""
import sys

import unicodedata2

VERSION = "16.0.0"
# White_Space is closed by stability policy and is not derivable from the general category alone.
WHITE_SPACE = [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F,
               0x3000]


def ranges(points):
    out = []
    for point in sorted(points):
        if out and out[-1][1] + 1 == point:
            out[-1][1] = point
        else:
            out.append([point, point])
    return out


def table(name, points):
    cells = [f"{{0x{a:04X}, 0x{b:04X}}}," for a, b in ranges(points)]
    print(f"static const struct unicode_range {name}[] = {{")
    for start in range(0, len(cells), 6):
        print("    " + " ".join(cells[start:start + 6]))
    print("};")


def main():
    if unicodedata2.unidata_version != VERSION:
        sys.exit(f"make_unicode_ranges: found Unicode {unicodedata2.unidata_version}, expected {VERSION}")
    by_category = {"L": [], "N": []}
    for point in range(0x110000):
        group = unicodedata2.category(chr(point))[0]
        if group in by_category:
            by_category[group].append(point)
    print(f"/* Made by tools/make_unicode_ranges.py from Unicode {VERSION}; do not edit. Included by unicode_class.c alone. */")
    print("#ifndef TEXT_UNICODE_RANGES_H\n#define TEXT_UNICODE_RANGES_H\n")
    print("#include <stdint.h>\n\nstruct unicode_range {\n    uint32_t first, last;\n};\n")
    print("/* clang-format off */")
    table("unicode_letters", by_category["L"])
    table("unicode_numbers", by_category["N"])
    table("unicode_spaces", WHITE_SPACE)
    print("/* clang-format on */\n\n#endif")


main()
