#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The most frequent words of the text on stdin, one a line: count, tab, word. Words that are equally frequent stand in
# alphabetical order. A word is a run of the letters A to Z; case does not count. TOP says how many (default 10).
set -eu

LC_ALL=C # bytes, so that the order does not depend on a locale
export LC_ALL
top=${TOP:-10}

# One line more than asked for: a text that begins with anything but a letter gives one empty word.
tr '[:upper:]' '[:lower:]' | tr -cs '[:lower:]' '\n' | sort | uniq -c | sort -k1,1nr -k2,2 | head -n "$((top + 1))" |
    while [ "$top" -gt 0 ] && read -r count word; do
        if [ -n "$word" ]; then
            printf '%s\t%s\n' "$count" "$word"
            top=$((top - 1))
        fi
    done
