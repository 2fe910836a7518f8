#!/bin/sh
# Fetch what README.md lists from the npm registry; with --new note what came, else compare it.
set -eu
cd "$(dirname "$0")"
here=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fetch() { # package version file...
    package=$1 version=$2
    shift 2
    npm pack --silent "$package@$version" >/dev/null
    tar xzf "$package-$version.tgz"
    for file in "$@"; do mv "package/$file" .; done
    rm -r package
}
fetch vega 6.4.0 build/vega.min.js
fetch vega-lite 6.4.3 build/vega-lite.min.js
fetch vega-embed 7.3.0 build/vega-embed.min.js
fetch tabulator-tables 6.5.3 dist/js/tabulator.min.js dist/css/tabulator_simple.min.css
if [ "${1:-}" = --new ]; then
    sha256sum -- *.min.js *.min.css >"$here/SHA256SUMS"
else
    sha256sum --check "$here/SHA256SUMS"
fi
mv -- *.min.js *.min.css "$here/"
