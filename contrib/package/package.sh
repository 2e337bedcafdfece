#!/bin/sh
# Makes a package of what `make build man completions copyright` made, in bin, and prints its path.
#
#   package.sh deb|rpm
set -eu
cd "$(dirname "$0")/../.."
format=$1
export VERSION STAGE="bin/stage/$format"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH
rm -rf "$STAGE" bin/banger[_-][0-9]*."$format"
zsh=/usr/share/zsh/site-functions
if [ "$format" = deb ]; then
	zsh=/usr/share/zsh/vendor-completions
fi
DESTDIR=$STAGE PREFIX=/usr ZSH=$zsh FORMAT=$format sh contrib/package/install.sh
"${GO:-go}" tool -modfile=contrib/package/nfpm.mod nfpm package -f contrib/package/nfpm.yaml \
	-p "$format" -t bin
rm -rf bin/stage
echo bin/banger[_-][0-9]*."$format"
