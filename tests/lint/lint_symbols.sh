#!/bin/sh
# Symbols of the built library: every external name starts with lora_, and no data can be written (no mutable globals).
# Usage: lint_symbols.sh LIBRARY.a [EXTENSION.so]   The extension may export nothing but PyInit__core.
set -eu
[ $# -ge 1 ] || { echo "usage: lint_symbols.sh LIBRARY.a [EXTENSION.so]" >&2; exit 2; }
status=0

refuse() { # name of the rule, offending lines
    [ -z "$2" ] && return
    printf '%s\n%s\n' "$1" "$2"
    status=1
}

# Position-independent tables of pointers are constants in .data.rel.ro, which nm marks d: look at the sections instead.
# Sanitizers and profilers add their own sections, so only plain builds are checked.
refuse "external names outside lora_:" \
    "$(nm --defined-only --extern-only "$1" | awk 'NF == 3 && $3 !~ /^lora_/ {print "  " $2 " " $3}')"
refuse "writable data:" \
    "$(objdump -t "$1" | awk '/file format/ {file = $1} $0 ~ / O / && $0 ~ /[ \t]\.(data|bss|tdata|tbss)([. \t]|$)/ && $0 !~ /\.data\.rel\.ro/ {print "  " file " " $NF}
                             $0 ~ /\*COM\*/ {print "  " file " " $NF}')"
if [ $# -ge 2 ]; then
    refuse "names exported by $2 besides PyInit__core:" \
        "$(nm -D --defined-only "$2" | awk '$NF != "PyInit__core" {print "  " $NF}')"
fi
[ $status -eq 0 ] && echo "lint_symbols: clean"
exit $status
