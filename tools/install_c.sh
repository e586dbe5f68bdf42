#!/bin/sh
# The C library for other programs: liblora_c.a, the public headers and a file for pkg-config.
#
#   TO=/usr/local sh tools/install_c.sh install build/release/liblora_c.a
#   TO=/usr/local sh tools/install_c.sh uninstall
#
# All files are written into a folder beside their places and renamed from there, lora_c.pc last: there is never a part of a
# file, and where something cannot be written nothing changes.
set -eu
umask 022
cd "$(dirname "$0")/.."

refuse() {
    echo "install-c: $1" >&2
    exit 1
}

no_rights() {
    refuse "PREFIX: expected a folder that can be written, got '$TO' ($1); PREFIX=\"\$HOME/.local\" needs no rights"
}

case ${TO:-} in
"") refuse "PREFIX: expected a folder, got an empty text; leave it out for /usr/local" ;;
"~"*) refuse "PREFIX: expected a path, got '$TO'; the shell writes \$HOME for ~ only at the begin of a word: PREFIX=\"\$HOME/…\"" ;;
*[\'\"\$\`\\]*) refuse "PREFIX: expected a path without quotes, \$ and backslashes, which pkg-config takes for its own, got '$TO'" ;;
esac
headers="$TO/include/lora_c" library="$TO/lib/liblora_c.a" pc="$TO/lib/pkgconfig/lora_c.pc"

write_pc() {
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    cat <<END
# Paths go out from this file, so that the folder may be moved. There is no shared library, so that what a program with
# liblora_c.a needs stands in Libs and not in Libs.private.
prefix=\${pcfiledir}/../..
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: lora_c
Description: LoRA and QLoRA fine-tuning of language models
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -llora_c -lm -ldl -pthread
END
}

# Folders that can be written, and nothing else where a file shall be: asked before anything is written.
check_places() {
    for folder in "$headers" "$TO/lib/pkgconfig"; do
        said=$(mkdir -p "$folder" 2>&1) || no_rights "$said"
    done
    for folder in "$TO" "$TO/lib" "$TO/lib/pkgconfig" "$headers"; do
        [ -w "$folder" ] || no_rights "'$folder' is read-only for you"
    done
    for header in lora_c/include/lora_c/*.h; do
        set -- "$@" "$headers/${header##*/}"
    done
    for file in "$library" "$pc" "$@"; do
        [ ! -d "$file" ] || refuse "PREFIX: expected a file or nothing at '$file', got a folder; move it away"
    done
}

install() {
    [ -f "$1" ] || refuse "library: expected a file, got '$1'; make install-c builds it"
    check_places
    stage=$(mktemp -d "$TO/.lora_c.XXXXXXXX") || refuse "PREFIX: expected room for a new folder in '$TO', got none"
    trap 'rm -rf "$stage"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir "$stage/headers"
    cp lora_c/include/lora_c/*.h "$stage/headers/" && cp "$1" "$stage/library" && write_pc >"$stage/pc" ||
        refuse "PREFIX: expected room for the files in '$TO', got too little; nothing was changed"
    chmod 644 "$stage/headers"/* "$stage/library" "$stage/pc"
    mv -f "$stage/headers"/*.h "$headers/"
    for header in "$headers"/*.h; do # an older version's
        [ -f "lora_c/include/lora_c/${header##*/}" ] || rm -f "$header"
    done
    mv -f "$stage/library" "$library"
    mv -f "$stage/pc" "$pc"
    echo "installed  $library, $headers/*.h, $pc"
}

uninstall() {
    [ -e "$library" ] || [ -e "$pc" ] || [ -d "$headers" ] || { echo "nothing to remove below $TO" && exit 0; }
    said=$(rm -f "$pc" "$library" "$headers"/*.h 2>&1) || no_rights "$said"
    rmdir "$headers" 2>/dev/null || [ ! -d "$headers" ] || echo "kept       $headers, which holds other files"
    echo "removed    $library, $headers/*.h, $pc"
}

case ${1:-} in
install) install "${2:-}" ;;
uninstall) uninstall ;;
*) refuse "expected install LIBRARY or uninstall, got '${1:-nothing}'" ;;
esac
